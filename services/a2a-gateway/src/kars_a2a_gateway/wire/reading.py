"""From untrusted JSON to official messages, and what a request must have.

The message is authorised and later written anew from what was parsed here; the bytes that came are never
handed on, so no second parser can read them differently.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from a2a.types import ListTasksRequest, Role, SendMessageRequest, TaskState
from google.api import field_behavior_pb2  # type: ignore[import-untyped]  # ships no stubs
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from kars_common import strict_json
from kars_common.errors import FieldViolation, InvalidInputError

from kars_a2a_gateway.errors import A2AError, Kind, invalid

MAX_ID_CHARS = 256
MAX_REFERENCES = 32
_REQUIRED = field_behavior_pb2.FieldBehavior.Value("REQUIRED")
_Message = TypeVar("_Message", bound=Message)


@dataclass(frozen=True, kw_only=True)
class MessageBounds:
    """How large a message may be, beside its bytes."""

    max_json_depth: int
    max_parts: int


def parse_document(raw: bytes, bounds: MessageBounds) -> Any:  # noqa: ANN401  # any JSON value
    """Read a body.

    Raises:
        A2AError: JSON_PARSE_ERROR; what is ambiguous (the same key twice) or too deep is not JSON here.
    """
    try:
        return strict_json.parse(raw, max_depth=bounds.max_json_depth)
    except InvalidInputError as exc:
        raise A2AError(Kind.JSON_PARSE_ERROR, exc.message, metadata={"why": exc.reason}) from exc


def parse_message(document: object, message: _Message) -> _Message:
    """Fill a message from JSON; members that A2A 1.0 does not know are ignored.

    Raises:
        A2AError: INVALID_PARAMS.
    """
    if not isinstance(document, dict):
        raise invalid("parameters must be a JSON object")
    _check_enums(document, message)
    try:
        json_format.ParseDict(document, message, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as exc:
        # The parser's words quote the caller's values; the field's name is enough to find it.
        raise invalid("parameters do not fit the request's type") from exc
    return message


def _check_enums(document: dict[str, Any], message: Message) -> None:
    """Refuse a word that is no value: the parser would drop it, and a filter would be silently gone."""
    for field in message.DESCRIPTOR.fields:
        if field.enum_type is None:
            continue
        value = document.get(field.json_name, document.get(field.name))
        if isinstance(value, str) and value not in field.enum_type.values_by_name:
            raise invalid("no such value", field.json_name)


def check_request(request: Message, bounds: MessageBounds) -> None:
    """Check what every binding must refuse alike.

    Raises:
        A2AError: INVALID_PARAMS, naming each field.
    """
    violations = [FieldViolation(path, "field is required") for path in _missing(request, "")]
    if violations:
        names = ", ".join(violation.field for violation in violations[:8])
        raise A2AError(Kind.INVALID_PARAMS, f"required: {names}", violations=violations[:32])
    for name in ("id", "task_id", "context_id"):
        _check_id(getattr(request, name, ""), name)
    history = getattr(request, "history_length", 0)
    if history < 0:
        raise invalid("history length must not be negative", "historyLength")
    if isinstance(request, ListTasksRequest) and request.status not in TaskState.values():
        raise invalid("no such state", "status")
    if isinstance(request, SendMessageRequest):
        _check_send(request, bounds)


def _check_send(request: SendMessageRequest, bounds: MessageBounds) -> None:
    message = request.message
    for name in ("message_id", "task_id", "context_id"):
        _check_id(getattr(message, name), f"message.{name}")
    for task_id in message.reference_task_ids:
        _check_id(task_id, "message.referenceTaskIds")
    _check_id(request.configuration.task_push_notification_config.id, "taskPushNotificationConfig.id")
    if message.role not in Role.values():
        raise invalid("no such role", "message.role")
    if len(message.parts) > bounds.max_parts:
        raise invalid(f"a message has at most {bounds.max_parts} parts", "message.parts")
    for index, part in enumerate(message.parts):
        if part.WhichOneof("content") is None:
            raise invalid("a part has text, raw, url or data", f"message.parts[{index}]")
    if len(message.reference_task_ids) > MAX_REFERENCES:
        raise invalid(f"at most {MAX_REFERENCES} tasks are referred to", "message.referenceTaskIds")
    if request.configuration.history_length < 0:
        raise invalid("history length must not be negative", "configuration.historyLength")


def _check_id(value: str, name: str) -> None:
    """Refuse an id that cannot be stored, or shown, as it is."""
    if len(value) > MAX_ID_CHARS or not value.isprintable():
        raise invalid(f"an id has at most {MAX_ID_CHARS} printable characters", name)


@dataclass(frozen=True)
class _Rules:
    required: tuple[FieldDescriptor, ...]
    nested: tuple[FieldDescriptor, ...]


@lru_cache(maxsize=128)
def _rules(descriptor: Descriptor) -> _Rules:
    fields = list(descriptor.fields)
    required = [
        field
        for field in fields
        if _REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    ]
    nested = [
        field
        for field in fields
        if field.message_type is not None
        and not field.message_type.full_name.startswith("google.protobuf.")
        and not field.message_type.GetOptions().map_entry
    ]
    return _Rules(tuple(required), tuple(nested))


def _missing(message: Message, prefix: str) -> Iterator[str]:
    rules = _rules(message.DESCRIPTOR)
    for field in rules.required:
        value = getattr(message, field.name)
        if field.is_repeated:
            absent = not value
        elif field.has_presence:
            absent = not message.HasField(field.name)
        else:
            absent = value == field.default_value
        if absent:
            yield prefix + field.json_name
    for field in rules.nested:
        value = getattr(message, field.name)
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from _missing(item, f"{prefix}{field.json_name}[{index}].")
        elif message.HasField(field.name):
            yield from _missing(value, f"{prefix}{field.json_name}.")
