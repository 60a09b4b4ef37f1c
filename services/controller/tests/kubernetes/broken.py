"""Breaks a valid manifest at every limit that its schema states, one at a time."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WRONG_TYPE: dict[str, Any] = {
    "string": 5,
    "integer": "5",
    "boolean": "yes",
    "object": "text",
    "array": "text",
}
_NO_QUANTITY: tuple[Any, ...] = (True, [], {}, ["1"], {"a": "1"})
_UNLIKELY = ("", " ", "\x00", "\x01", "no such value!", "a:b c")


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A manifest with one thing wrong: which field, and which limit of it."""

    document: dict[str, Any]
    field: str
    limit: str


def every_limit(document: dict[str, Any], schema: Mapping[str, Any]) -> Iterator[Broken]:
    """Yield one manifest for each limit of each field that the manifest gives a value."""
    for steps, field_schema, value in _values(schema["properties"]["spec"], document["spec"], ("spec",)):
        for limit, wrong in _wrong_values(field_schema, value):
            changed = copy.deepcopy(document)
            _put(changed, steps, wrong)
            yield Broken(document=changed, field=path(steps), limit=limit)
        if field_schema.get("type") == "object":
            yield from _wrong_members(document, steps, field_schema, value)


def limits_of(schema: Mapping[str, Any], field: str = "spec") -> Iterator[tuple[str, str]]:
    """Yield the (field, limit) pairs that a schema states, without the places in lists and maps."""
    for limit in _LIMITS:
        # `maximum` is narrower than the format; a quantity's bounds on lists and maps have their own cases.
        if limit in schema and not (limit == "format" and "maximum" in schema) and "not" not in schema:
            yield field, limit
    if "not" in schema:
        yield from ((field, limit) for limit in ("pattern", "minimum", *(f"not {w}" for w in _NO_QUANTITY)))
    for name in schema.get("required", ()):
        yield f"{field}.{name}", "required"
    for name, inner in schema.get("properties", {}).items():
        yield from limits_of(inner, f"{field}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from limits_of(schema[keyword], f"{field}[]")


def path(steps: tuple[str | int, ...]) -> str:
    """Return `spec.a[0].b`."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


_LIMITS = (
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "format",
)


def _values(
    schema: Mapping[str, Any], value: Any, steps: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any], Any]]:
    yield steps, schema, value
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _values(schema["items"], item, (*steps, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if inner is not None:
                yield from _values(inner, item, (*steps, name))


def _wrong_values(schema: Mapping[str, Any], value: Any) -> Iterator[tuple[str, Any]]:
    if "type" in schema:
        yield "type", _WRONG_TYPE[schema["type"]]
    elif "not" in schema:  # a quantity: text or number
        for wrong in _NO_QUANTITY:
            yield f"not {wrong}", wrong
    if "enum" in schema:
        yield "enum", "no-such-value"
    yield from _wrong_numbers(schema)
    yield from _wrong_texts(schema)
    if schema.get("minItems"):
        yield "minItems", []
    if "maxItems" in schema and isinstance(value, list) and schema["maxItems"] <= 1000:
        yield "maxItems", [*value, *[value[0]] * schema["maxItems"]]


def _wrong_numbers(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if "minimum" in schema:
        yield "minimum", schema["minimum"] - 1
    if "maximum" in schema:
        yield "maximum", schema["maximum"] + 1
    elif schema.get("format") == "int64":
        yield "format", 2**63


def _wrong_texts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if schema.get("format") == "date-time":
        yield "format", "soon"
    if "minLength" in schema:
        yield "minLength", "a" * (schema["minLength"] - 1)
    if "maxLength" in schema:
        yield "maxLength", "a" * (schema["maxLength"] + 1)
    if "pattern" in schema:
        yield "pattern", next(text for text in _UNLIKELY if not re.search(schema["pattern"], text))


def _wrong_members(
    document: dict[str, Any], steps: tuple[str | int, ...], schema: Mapping[str, Any], value: dict[str, Any]
) -> Iterator[Broken]:
    for name in schema.get("required", ()):
        changed = copy.deepcopy(document)
        del _at(changed, steps)[name]
        yield Broken(document=changed, field=path((*steps, name)), limit="required")
    if "properties" in schema:
        changed = copy.deepcopy(document)
        _at(changed, steps)["nobodyKnows"] = 1
        yield Broken(document=changed, field=path((*steps, "nobodyKnows")), limit="unknown")


def _at(document: Any, steps: tuple[str | int, ...]) -> Any:
    for step in steps:
        document = document[step]
    return document


def _put(document: Any, steps: tuple[str | int, ...], value: Any) -> None:
    _at(document, steps[:-1])[steps[-1]] = value
