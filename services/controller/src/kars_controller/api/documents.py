"""JSON text in and out: strict when it comes from a caller."""

import json
from typing import Any

from kars_common.errors import InvalidInputError

from kars_controller.raw import Raw

MAX_DOCUMENT_BYTES = 1024 * 1024
_MAX_DEPTH = 64


def load(text: str) -> dict[str, Any]:
    """Return the one JSON object in a caller's text.

    Raises:
        InvalidInputError: `document_malformed`: not JSON, not an object, duplicate keys, NaN, too large or
            nested too deep.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
        raise _malformed(f"has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise _malformed(f"is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise _malformed("must be a JSON object with apiVersion, kind, metadata and spec")
    if _depth(document) > _MAX_DEPTH:
        raise _malformed(f"nests deeper than {_MAX_DEPTH}")
    return document


def dump(document: dict[str, Any]) -> str:
    """Return a document as JSON text."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:80]!r} is given twice")
    return members


def _no_constant(name: str) -> Raw:
    raise ValueError(f"{name} is not a JSON number")


def _depth(document: Raw) -> int:
    depth, level = 0, [document]
    while level:
        depth += 1
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
    return depth


def _malformed(what: str) -> InvalidInputError:
    return InvalidInputError("document_malformed", f"document {what}")
