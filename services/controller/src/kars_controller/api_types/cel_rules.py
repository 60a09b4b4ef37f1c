"""Evaluates the rules that models declare, as an API server does: after defaults, on what the schema took.

A rule that cannot be evaluated is broken: what nobody could check is not accepted.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import cel

from kars_controller.api_types.base import ApiModel, Violation
from kars_controller.api_types.published import CelRule
from kars_controller.raw import Raw


def violations(model: type[ApiModel], value: Mapping[str, Any], path: str = "spec") -> Iterator[Violation]:
    """Yield each broken rule of an object and of the objects in it; transition rules are not asked.

    Args:
        model: What the object is.
        value: The object as it would be stored, defaults filled in.
        path: Where the object is.
    """
    for rule in model.cel:
        if not rule.is_transition:
            yield from _broken(rule, {"self": value}, path)
    for python_name, info in model.model_fields.items():
        name = info.alias or python_name
        if name in value:
            yield from _inside(info.annotation, value[name], f"{path}.{name}")


def transitions(
    model: type[ApiModel], value: Mapping[str, Any], old: Mapping[str, Any] | None, path: str = "spec"
) -> Iterator[Violation]:
    """Yield each transition rule of a spec that a change breaks; `old` is None when it is being created.

    Transition rules belong to the spec itself. In an object inside, an API server may be unable to tell
    what it was before, so none is declared there.
    """
    for rule in model.cel:
        if not rule.is_transition or (old is None and not rule.on_create):
            continue
        before: Raw = old
        if rule.on_create:
            before = cel.OptionalValue.none() if old is None else cel.OptionalValue.of(old)
        yield from _broken(rule, {"self": value, "oldSelf": before}, path)


def _inside(annotation: Raw, value: Raw, path: str) -> Iterator[Violation]:
    """Look for models in a field: itself, optional, in a list or a map."""
    container: Raw = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield from violations(annotation, value, path)
    elif container is list:
        for index, item in enumerate(value):
            yield from _inside(get_args(annotation)[0], item, f"{path}[{index}]")
    elif container is dict:
        for key, item in value.items():
            yield from _inside(get_args(annotation)[1], item, f"{path}.{key}")
    else:
        for part in get_args(annotation):
            if _has_model(part):
                yield from _inside(part, value, path)


def _has_model(annotation: Raw) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return True
    return any(_has_model(part) for part in get_args(annotation))


def _broken(rule: CelRule, known: dict[str, Any], path: str) -> Iterator[Violation]:
    try:
        holds = _program(rule.rule).execute(known) is True
    except (ValueError, RuntimeError, TypeError, KeyError):
        # Text that is no Unicode, for one. What the rule says is part of the answer, not all of it.
        yield Violation(f"{path}{rule.field}", f"a rule cannot be evaluated on it: {rule.message}")
    else:
        if not holds:
            yield Violation(f"{path}{rule.field}", rule.message)


@functools.lru_cache(maxsize=256)
def _program(rule: str) -> cel.Program:
    return cel.compile(rule)
