"""JSON from an untrusted caller: UTF-8, one object, no duplicate key, bounded depth.

Two parsers that disagree about a document are how a check is passed with one
value and the provider served another, so what is ambiguous is refused, and what
goes on to the provider is always written anew from what was checked here.
"""

import re
from typing import Any

import orjson

MAX_DEPTH = 64
# orjson is several times faster than json, but keeps the last of two equal keys silently. With the strings
# taken out of the text, each remaining colon is one member: more colons than keys: a key was dropped.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class MalformedJsonError(ValueError):
    """The body cannot be accepted as JSON.

    Attributes:
        code: stable reason for the wire (`invalid_json`, `duplicate_key`, ...).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse_object(raw: bytes | bytearray) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        MalformedJsonError: `invalid_utf8`, `invalid_json`, `not_an_object`, `too_deep` or `duplicate_key`.
    """
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        if "depth limit" in str(exc):
            raise MalformedJsonError("too_deep", f"JSON may nest at most {MAX_DEPTH} levels") from None
        if not _is_utf8(raw):
            raise MalformedJsonError("invalid_utf8", "the body is not UTF-8") from None
        raise MalformedJsonError("invalid_json", "the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise MalformedJsonError("not_an_object", "the body must be a JSON object")
    keys = _count_keys(document)
    if _STRING.sub(b"", raw).count(b":") != keys:
        raise MalformedJsonError("duplicate_key", "the body holds the same key twice in one object")
    return document


def _is_utf8(raw: bytes | bytearray) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _count_keys(document: dict[str, Any]) -> int:
    """Count members of all objects, level by level.

    Raises:
        MalformedJsonError: `too_deep`.
    """
    keys = 0
    level: list[Any] = [document]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise MalformedJsonError("too_deep", f"JSON may nest at most {MAX_DEPTH} levels")
        below: list[Any] = []
        for node in level:
            if type(node) is dict:
                keys += len(node)
                below.extend(value for value in node.values() if type(value) is dict or type(value) is list)
            else:
                below.extend(value for value in node if type(value) is dict or type(value) is list)
        level = below
    return keys
