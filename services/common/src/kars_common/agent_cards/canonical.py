"""The bytes of a card that a signature covers: RFC 8785, in the two forms that are in use.

The specification says: fields marked REQUIRED are always there, optional ones when they were set, everything
else when it is no default. The official clients instead leave out all empty text, lists and objects. Where a
card has none of those the forms agree and one signature serves everybody; `unsafe_parts` names what makes
them differ. Knows no key.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, cast

import rfc8785
from a2a.types import AgentCard
from google.api import field_behavior_pb2  # type: ignore[import-untyped]  # ships no stubs
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kars_common.errors import InvalidInputError

MAX_DEPTH = 64
_REQUIRED = field_behavior_pb2.FieldBehavior.Value("REQUIRED")


class Form(StrEnum):
    """Which bytes stand for a card."""

    SPECIFICATION = "specification"
    CLIENTS = "clients"
    """As the official SDKs compute it: nothing that is empty, at any depth."""


def canonical(card: AgentCard, form: Form = Form.SPECIFICATION) -> bytes:
    """Return the canonical bytes of a card without its signatures.

    Raises:
        InvalidInputError: `card_not_canonical` when a value has no canonical JSON.
    """
    document = _specification(card, 1) if form is Form.SPECIFICATION else _without_empty(_plain(card), 1)
    (document or {}).pop("signatures", None)
    try:
        return rfc8785.dumps(document or {})
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as exc:
        raise InvalidInputError(
            "card_not_canonical", "the card holds a value without canonical JSON"
        ) from exc


def forms_agree(card: AgentCard) -> bool:
    """Tell whether both forms are the same bytes, so that one signature serves everybody."""
    return canonical(card, Form.SPECIFICATION) == canonical(card, Form.CLIENTS)


def unsafe_parts(card: AgentCard) -> list[str]:
    """Return the paths of values that one form has and the other has not."""
    document = _specification(card, 1)
    document.pop("signatures", None)
    return sorted(_empty_paths(document, ""))


def _plain(message: Message) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(message)
    except (json_format.SerializeToJsonError, ValueError, RecursionError) as exc:
        raise InvalidInputError("card_not_canonical", "the card cannot be written as JSON") from exc


def _specification(message: Message, depth: int) -> dict[str, Any]:
    _check_depth(depth)
    if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        return _plain(message)  # Struct and Value: what was put in is what is there
    document: dict[str, Any] = {}
    for raw in message.DESCRIPTOR.fields:
        field = cast("FieldDescriptor", raw)
        value = getattr(message, field.name)
        if field.is_repeated:
            present = len(value) > 0
        elif field.has_presence:
            present = message.HasField(field.name)
        else:
            present = value != field.default_value
        if present or (_is_required(field) and not (field.message_type and not field.is_repeated)):
            document[field.json_name] = _value(field, value, depth)
    return document


def _value(field: FieldDescriptor, value: Any, depth: int) -> Any:  # noqa: ANN401  # protobuf values
    if field.message_type is None:
        return list(value) if field.is_repeated else value
    if field.message_type.GetOptions().map_entry:
        of_messages = field.message_type.fields_by_name["value"].message_type is not None
        return {key: _specification(item, depth + 1) if of_messages else item for key, item in value.items()}
    if field.is_repeated:
        return [_specification(item, depth + 1) for item in value]
    return _specification(value, depth + 1)


def _is_required(field: FieldDescriptor) -> bool:
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return _REQUIRED in behaviors


def _without_empty(value: Any, depth: int) -> Any:  # noqa: ANN401  # any JSON value
    _check_depth(depth)
    if isinstance(value, dict):
        kept = {
            key: left for key, item in value.items() if (left := _without_empty(item, depth + 1)) is not None
        }
        return kept or None
    if isinstance(value, list):
        items = [left for item in value if (left := _without_empty(item, depth + 1)) is not None]
        return items or None
    return None if value == "" else value


def _empty_paths(value: Any, path: str) -> Iterator[str]:  # noqa: ANN401  # any JSON value
    if value in ("", None) or (isinstance(value, dict | list) and not value):
        yield path or "/"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _empty_paths(item, f"{path}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _empty_paths(item, f"{path}/{index}")


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInputError("card_too_deep", f"a card may nest at most {MAX_DEPTH} levels")
