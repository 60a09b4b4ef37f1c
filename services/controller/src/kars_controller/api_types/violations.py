"""Turns pydantic's errors into sentences that say where, what was found and what is allowed."""

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kars_controller.api_types.base import Violation
from kars_controller.raw import Raw

_MAX_SHOWN_CHARS = 80
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def of(error: ValidationError, model: type[BaseModel]) -> Iterator[Violation]:
    """Yield one violation for each error, paths beginning with `spec`."""
    seen = set()
    for detail in error.errors(include_url=False):
        location = tuple(step for step in detail["loc"] if not _is_union_tag(step, detail["loc"]))
        if location in seen:
            continue
        seen.add(location)
        yield Violation(path(("spec", *location)), _describe(detail, model, location))


def path(steps: Sequence[str | int]) -> str:
    """Return `spec.a.b[0].c`."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def shown(value: Raw) -> str:
    """Return a value as short JSON; `nothing` when it is not there."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"


def _describe(detail: ErrorDetails, model: type[BaseModel], location: Sequence[str | int]) -> str:
    kind, context, got = detail["type"], detail.get("ctx", {}), shown(detail["input"])
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return _describe_unknown(str(location[-1]), _known(model, location[:-1]))
    if kind == "too_long":
        return f"got {context['actual_length']} items, allowed: at most {context['max_length']}"
    if kind == "literal_error":
        allowed = str(context["expected"]).replace(" or ", ", ").replace("'", "")
    elif kind in ("greater_than_equal", "less_than_equal"):
        allowed = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
    elif kind in _EXPECTED:
        allowed = _EXPECTED[kind]
    else:
        return f"got {got}, {detail['msg']}"
    return f"got {got}, allowed: {allowed}"


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    near = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown field{near}; allowed: {', '.join(known)}"


def _is_union_tag(step: str | int, location: Sequence[str | int]) -> bool:
    """Pydantic adds the member's name to paths through a union of scalars (quantities)."""
    return (
        step in ("str", "int", "float")
        and step == location[-1]
        and len(location) > 1
        and "resources" in location
    )


def _known(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the field names of the model at a location."""
    current: Any = model
    for step in location:
        if isinstance(step, int):
            continue
        by_alias = {info.alias or name: info.annotation for name, info in current.model_fields.items()}
        found = _model_in(by_alias.get(str(step)))
        if found is None:
            return []
        current = found
    return [info.alias or name for name, info in current.model_fields.items()]


def _model_in(annotation: Raw) -> type[BaseModel] | None:
    """Return the model inside `Model`, `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        found = _model_in(part)
        if found is not None:
            return found
    return None
