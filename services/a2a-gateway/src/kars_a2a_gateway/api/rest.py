"""The HTTP+JSON binding: a path for each operation, the request's media type mirrored in the answer."""

import re
from typing import Any

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kars_a2a_gateway.api import writing
from kars_a2a_gateway.api.events import send_events
from kars_a2a_gateway.api.exchange import Exchange
from kars_a2a_gateway.api.writing import A2A_JSON, JSON
from kars_a2a_gateway.errors import A2AError, Kind, invalid
from kars_a2a_gateway.operations.admission import Admission, Call, Knock
from kars_a2a_gateway.operations.dispatch import METHODS, Dispatcher, Method
from kars_a2a_gateway.wire import reading

_ID = r"(?P<id>[^/:]{1,256})"
_ROUTES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (verb, re.compile(pattern), name)
    for verb, pattern, name in (
        ("POST", r"/message:send", "SendMessage"),
        ("POST", r"/message:stream", "SendStreamingMessage"),
        ("GET", r"/tasks", "ListTasks"),
        ("GET", rf"/tasks/{_ID}", "GetTask"),
        ("POST", rf"/tasks/{_ID}:cancel", "CancelTask"),
        ("GET", rf"/tasks/{_ID}:subscribe", "SubscribeToTask"),
        ("POST", rf"/tasks/{_ID}:subscribe", "SubscribeToTask"),
        ("POST", rf"/tasks/{_ID}/pushNotificationConfigs", "CreateTaskPushNotificationConfig"),
        ("GET", rf"/tasks/{_ID}/pushNotificationConfigs", "ListTaskPushNotificationConfigs"),
        (
            "GET",
            rf"/tasks/{_ID}/pushNotificationConfigs/(?P<config>[^/]{{1,256}})",
            "GetTaskPushNotificationConfig",
        ),
        (
            "DELETE",
            rf"/tasks/{_ID}/pushNotificationConfigs/(?P<config>[^/]{{1,256}})",
            "DeleteTaskPushNotificationConfig",
        ),
        ("GET", r"/extendedAgentCard", "GetExtendedAgentCard"),
    )
)
# Methods whose request is the body; the others have path and query.
_WITH_BODY = frozenset(
    ("SendMessage", "SendStreamingMessage", "CreateTaskPushNotificationConfig", "CancelTask")
)
_BODY_OPTIONAL = frozenset(("CancelTask",))
_NOT_FIELDS = frozenset(("A2A-Version", "a2a-version"))


class Rest:
    """Answers HTTP+JSON requests."""

    def __init__(self, admission: Admission, dispatcher: Dispatcher) -> None:
        self._admission = admission
        self._dispatcher = dispatcher

    async def answer(self, exchange: Exchange, path: str, knock: Knock) -> None:
        """Answer one request; errors too."""
        call: Call | None = None
        name = ""
        try:
            exposure, _ = self._admission.find(knock.agent)
            method, ids = _route(exchange.method, path)
            name = method.name
            raw = await self._body(exchange, method, exposure.limits.max_body_bytes)
            call = await self._admission.enter(knock)
            request = self._request(exchange, method, ids, raw)
            if method.streams:
                await self._stream(exchange, call, method, request)
                return
            result = await self._dispatcher.unary(call, method, request)
            body = {} if name == "DeleteTaskPushNotificationConfig" else writing.document(result)
            headers = [("cache-control", "no-store"), *_extension_headers(call)]
            await exchange.respond(200, orjson.dumps(body), media_type(exchange), headers)
        except A2AError as error:
            self._admission.refused(knock, name, error, call)
            await refuse(exchange, error)

    async def _stream(self, exchange: Exchange, call: Call, method: Method, request: Message) -> None:
        await send_events(
            exchange,
            self._dispatcher.stream(call, method, request),
            lambda event: orjson.dumps(writing.document(event)),
            writing.rest_error,
            lambda: _extension_headers(call),
        )

    async def _body(self, exchange: Exchange, method: Method, limit: int) -> bytes:
        raw = await exchange.body(limit)
        if method.name not in _WITH_BODY:
            return b""
        if not raw and method.name in _BODY_OPTIONAL:
            return raw
        if exchange.media_type not in (JSON, A2A_JSON):
            raise A2AError(Kind.CONTENT_TYPE_NOT_SUPPORTED, f"send {A2A_JSON} or {JSON}")
        return raw

    def _request(self, exchange: Exchange, method: Method, ids: dict[str, str], raw: bytes) -> Message:
        request = method.request()
        if method.name in _WITH_BODY:
            if raw:
                reading.parse_message(reading.parse_document(raw, self._dispatcher.bounds), request)
        else:
            reading.parse_message(_query(exchange, request), request)
        for name, value in _names(method, ids).items():
            # The path says what is meant; a body that says otherwise is overruled, as in the official server.
            setattr(request, name, value)
        return request


def media_type(exchange: Exchange) -> str:
    """Return the media type of the answer: that of the request, where it had one."""
    return JSON if exchange.media_type == JSON else A2A_JSON


async def refuse(exchange: Exchange, error: A2AError) -> None:
    """Answer with an error."""
    headers = [("cache-control", "no-store"), *error.headers]
    await exchange.respond(error.kind.value.http, writing.rest_error(error), media_type(exchange), headers)


def _route(verb: str, path: str) -> tuple[Method, dict[str, str]]:
    allowed = []
    for route_verb, pattern, name in _ROUTES:
        found = pattern.fullmatch(path)
        if found is None:
            continue
        if route_verb == verb:
            return METHODS[name], found.groupdict()
        allowed.append(route_verb)
    if allowed:
        headers = (("allow", ", ".join(sorted(set(allowed)))),)
        raise A2AError(Kind.METHOD_NOT_ALLOWED, "this path takes another HTTP method", headers=headers)
    raise A2AError(Kind.METHOD_NOT_FOUND, "A2A 1.0 has no such path")


def _names(method: Method, ids: dict[str, str]) -> dict[str, str]:
    """Return the fields that the path sets."""
    if not ids:
        return {}
    if "PushNotificationConfig" not in method.name:
        return {"id": ids["id"]}
    return {"task_id": ids["id"]} | ({"id": ids["config"]} if "config" in ids else {})


def _query(exchange: Exchange, request: Message) -> dict[str, Any]:
    """Return the query as the JSON of a request."""
    fields = {field.json_name: field for field in request.DESCRIPTOR.fields}
    document: dict[str, Any] = {}
    for name, values in exchange.query().items():
        field = fields.get(name)
        if field is None or name in _NOT_FIELDS:
            continue  # unknown members are ignored in bodies too
        if len(values) > 1:
            raise invalid("the parameter is there twice", name)
        document[name] = _value(field, name, values[0])
    return document


def _value(field: Any, name: str, text: str) -> object:  # noqa: ANN401  # a FieldDescriptor
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text.lower() not in ("true", "false"):
            raise invalid("the parameter must be true or false", name)
        return text.lower() == "true"
    if field.type == FieldDescriptor.TYPE_INT32:
        try:
            return int(text)
        except ValueError as exc:
            raise invalid("the parameter must be a whole number", name) from exc
    return text


def _extension_headers(call: Call) -> list[tuple[str, str]]:
    return [("a2a-extensions", ", ".join(call.active))] if call.active else []
