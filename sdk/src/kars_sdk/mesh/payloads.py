"""Text and JSON for the application, and the small JSON documents that transfers and groups exchange.

JSON from a peer is bounded in size and depth, has no member twice and no NaN; what it means is the reader's
affair.
"""

import json
import math
from typing import TypeAlias

from kars_sdk.mesh.errors import PayloadError

TEXT, JSON = "text", "json"
MAX_TEXT_BYTES = 512 * 1024
MAX_JSON_BYTES = 512 * 1024
MAX_JSON_DEPTH = 32

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


def encode_text(text: str) -> bytes:
    """Return a text's bytes.

    Raises:
        PayloadError: `text_too_large`, `text_invalid`.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as exc:
        raise PayloadError("text_invalid", "the text cannot be written as UTF-8") from exc
    if len(data) > MAX_TEXT_BYTES:
        raise PayloadError("text_too_large", f"a text has at most {MAX_TEXT_BYTES} bytes: send a file")
    return data


def decode_text(data: bytes) -> str:
    """Return a peer's text.

    Raises:
        PayloadError: `text_too_large`, `text_invalid`.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise PayloadError("text_too_large", f"a text has at most {MAX_TEXT_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise PayloadError("text_invalid", "the peer's text is not UTF-8") from exc


def encode_json(document: Json) -> bytes:
    """Return a document's bytes.

    Raises:
        PayloadError: `json_too_large`, `json_invalid`.
    """
    try:
        data = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise PayloadError("json_invalid", "the document cannot be written as JSON") from exc
    if len(data) > MAX_JSON_BYTES:
        raise PayloadError("json_too_large", f"a document has at most {MAX_JSON_BYTES} bytes: send a file")
    return data


def decode_json(data: bytes) -> Json:
    """Return a peer's document.

    Raises:
        PayloadError: `json_too_large`, `json_invalid`, `json_too_deep`.
    """
    if len(data) > MAX_JSON_BYTES:
        raise PayloadError("json_too_large", f"a document has at most {MAX_JSON_BYTES} bytes")
    try:
        document: Json = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise PayloadError("json_invalid", "the peer's document is not JSON") from exc
    _check_depth(document)
    return document


def decode_object(data: bytes) -> dict[str, Json]:
    """Return a peer's document that must be an object.

    Raises:
        PayloadError: see `decode_json`.
    """
    document = decode_json(data)
    if not isinstance(document, dict):
        raise PayloadError("json_invalid", "the peer's document is not an object")
    return document


def text_of(document: dict[str, Json], member: str, *, most: int = 256) -> str:
    """Return a text member.

    Raises:
        PayloadError: `member_invalid`.
    """
    value = document.get(member)
    if not isinstance(value, str) or len(value) > most:
        raise PayloadError("member_invalid", f"{member} must be a text of at most {most} characters")
    return value


def number_of(document: dict[str, Json], member: str, *, most: int) -> int:
    """Return a member that is a number from 0 on.

    Raises:
        PayloadError: `member_invalid`.
    """
    value = document.get(member)
    if type(value) is not int or not 0 <= value <= most:
        raise PayloadError("member_invalid", f"{member} must be a number from 0 to {most}")
    return value


def list_of(document: dict[str, Json], member: str, *, most: int) -> list[Json]:
    """Return a list member.

    Raises:
        PayloadError: `member_invalid`.
    """
    value = document.get(member)
    if not isinstance(value, list) or len(value) > most:
        raise PayloadError("member_invalid", f"{member} must be a list of at most {most}")
    return value


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a member is there twice")
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_depth(document: Json) -> None:
    level: list[Json] = [document]
    for _ in range(MAX_JSON_DEPTH):
        inner: list[Json] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise PayloadError("json_invalid", "the peer's document has a number that is none")
        if not inner:
            return
        level = inner
    raise PayloadError("json_too_deep", f"a document has at most {MAX_JSON_DEPTH} levels")
