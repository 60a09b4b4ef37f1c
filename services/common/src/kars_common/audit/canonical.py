"""One record, one byte string: RFC 8785 canonical JSON over a narrow domain.

The domain is what makes a fast encoder agree with RFC 8785 (a property test holds it to the reference
library): ASCII keys, strings, integers within 2^53, booleans, null, lists and objects. Floats are refused,
because their canonical form is where implementations disagree.
"""

from collections.abc import Mapping, Sequence

import orjson

from kars_common.errors import InvalidInputError

Json = None | bool | int | str | Sequence["Json"] | Mapping[str, "Json"]

MAX_DEPTH = 8
MAX_INT = 2**53 - 1
_OPTIONS = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def encode(value: Mapping[str, object]) -> bytes:
    """Return the canonical bytes of a record that `check` has accepted.

    Raises:
        InvalidInputError: `audit_field_invalid`, when the value is outside the domain.
    """
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except (TypeError, orjson.JSONEncodeError) as exc:
        raise InvalidInputError("audit_field_invalid", "a field is outside the record domain") from exc


def decode(line: bytes) -> dict[str, Json]:
    """Return the record in a line; only its canonical form is accepted.

    Raises:
        InvalidInputError: `audit_record_malformed` (not a JSON object) or `audit_record_not_canonical`.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise InvalidInputError("audit_record_malformed", f"not JSON at byte {exc.pos} of the line") from exc
    if not isinstance(record, dict):
        raise InvalidInputError("audit_record_malformed", "record is not an object")
    try:
        canonical = encode(normalise(record))
    except InvalidInputError as exc:
        raise InvalidInputError("audit_record_not_canonical", exc.message) from exc
    if canonical != line:
        raise InvalidInputError("audit_record_not_canonical", "record is not in canonical form")
    return record


def normalise(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields as plain JSON types of the record domain (a copy; subclasses of `str` become `str`).

    Raises:
        InvalidInputError: `audit_field_invalid`, naming the field.
    """
    result = dict(fields)
    try:
        names = "".join(result)
    except TypeError as exc:
        raise InvalidInputError("audit_field_invalid", "a field name is not text") from exc
    if not names.isascii():
        raise InvalidInputError("audit_field_invalid", f"a field name is not ASCII: {names[:200]!r}")
    for key, value in result.items():
        kind = value.__class__
        if not (kind is str or kind is int or kind is bool or value is None):
            result[key] = _normalise(value, key, 1)  # no key is added: the iteration stays sound
    return result


def _normalise(value: object, field: str, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise InvalidInputError("audit_field_invalid", f"field {field!r} is nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        entries = {}
        for key, item in value.items():
            if not (isinstance(key, str) and key.isascii()):
                raise InvalidInputError(
                    "audit_field_invalid", f"field {field!r} has a key that is not ASCII text"
                )
            entries[str.__str__(key)] = _normalise(item, field, depth + 1)
        return entries
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_normalise(item, field, depth + 1) for item in value]
    raise InvalidInputError("audit_field_invalid", f"field {field!r} is a {type(value).__name__}")


def scrub(record: Mapping[str, object]) -> dict[str, object]:
    """Return the record with lone surrogates, which UTF-8 cannot carry, replaced by question marks."""
    return {key: _scrub(value) for key, value in record.items()}


def _scrub(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _scrub(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_scrub(item) for item in value]
    return value
