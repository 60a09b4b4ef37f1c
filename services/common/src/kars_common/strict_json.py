"""JSON from an untrusted sender: UTF-8, no duplicate key, bounded depth.

Two parsers that disagree about a document are how a check is passed with one value and another part is served
the other, so what is ambiguous is refused. Knows nothing of what a document means; callers bound its size.
"""

import re
from typing import Any

import orjson

from kars_common.errors import InvalidInputError

# orjson is several times faster than json, but keeps the last of two equal keys silently. With the strings
# taken out of the text, each remaining colon is one member: more colons than keys: a key was dropped.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def parse(raw: bytes | bytearray, *, max_depth: int) -> Any:  # noqa: ANN401  # any JSON value
    """Parse one JSON value.

    Args:
        raw: the document; the caller has bounded its length.
        max_depth: open objects and arrays on the way to any value.

    Raises:
        InvalidInputError: `invalid_utf8`, `invalid_json`, `too_deep` or `duplicate_key`.
    """
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        if "depth limit" in str(exc) or "recursion limit" in str(exc):
            raise _too_deep(max_depth) from None
        if not _is_utf8(raw):
            raise InvalidInputError("invalid_utf8", "the document is not UTF-8") from None
        raise InvalidInputError("invalid_json", "the document is not valid JSON") from None
    keys = _count_keys(document, max_depth)
    if _STRING.sub(b"", raw).count(b":") != keys:
        raise InvalidInputError("duplicate_key", "the document holds the same key twice in one object")
    return document


def _is_utf8(raw: bytes | bytearray) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _count_keys(document: object, max_depth: int) -> int:
    """Count members of all objects, level by level."""
    keys = 0
    level: list[Any] = [document] if isinstance(document, dict | list) else []
    depth = 0
    while level:
        depth += 1
        if depth > max_depth:
            raise _too_deep(max_depth)
        below: list[Any] = []
        for node in level:
            if type(node) is dict:
                keys += len(node)
                values: Any = node.values()
            else:
                values = node
            below.extend(value for value in values if type(value) is dict or type(value) is list)
        level = below
    return keys


def _too_deep(max_depth: int) -> InvalidInputError:
    return InvalidInputError("too_deep", f"JSON may nest at most {max_depth} levels")
