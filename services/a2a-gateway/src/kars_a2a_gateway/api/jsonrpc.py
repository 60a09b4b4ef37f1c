"""The JSON-RPC binding: one POST, one call. Batches are not part of A2A."""

import orjson
from google.protobuf.message import Message

from kars_a2a_gateway.api import writing
from kars_a2a_gateway.api.events import send_events
from kars_a2a_gateway.api.exchange import Exchange
from kars_a2a_gateway.api.writing import A2A_JSON, JSON
from kars_a2a_gateway.errors import A2AError, Kind, invalid
from kars_a2a_gateway.operations.admission import Admission, Call, Knock
from kars_a2a_gateway.operations.dispatch import Dispatcher, Method, find_method
from kars_a2a_gateway.wire import reading

RequestId = str | int | None
_MAX_ID_CHARS = 256


class JsonRpc:
    """Answers JSON-RPC requests."""

    def __init__(self, admission: Admission, dispatcher: Dispatcher) -> None:
        self._admission = admission
        self._dispatcher = dispatcher

    async def answer(self, exchange: Exchange, knock: Knock) -> None:
        """Answer one request; errors too."""
        request_id: RequestId = None
        method_name = ""
        call: Call | None = None
        try:
            _check_media_type(exchange)
            exposure, _ = self._admission.find(knock.agent)
            raw = await exchange.body(exposure.limits.max_body_bytes)
            call = await self._admission.enter(knock)
            body = reading.parse_document(raw, self._dispatcher.bounds)
            request_id = _request_id(body)
            method, params = _envelope(body)
            method_name = method.name
            request = reading.parse_message(params, method.request())
            await self._dispatch(exchange, call, method, request, request_id)
        except A2AError as error:
            self._admission.refused(knock, method_name, error, call)
            await _refuse(exchange, request_id, error)

    async def _dispatch(
        self,
        exchange: Exchange,
        call: Call,
        method: Method,
        request: Message,
        request_id: RequestId,
    ) -> None:
        if method.streams:
            await send_events(
                exchange,
                self._dispatcher.stream(call, method, request),
                lambda event: orjson.dumps(writing.rpc_result(request_id, event)),
                lambda error: orjson.dumps(writing.rpc_error(request_id, error)),
                lambda: _extension_headers(call),
            )
            return
        result = await self._dispatcher.unary(call, method, request)
        body = writing.rpc_result(request_id, result)
        if method.name == "DeleteTaskPushNotificationConfig":
            body["result"] = None
        await exchange.respond(
            200, orjson.dumps(body), JSON, [("cache-control", "no-store"), *_extension_headers(call)]
        )


def _check_media_type(exchange: Exchange) -> None:
    """Refuse other media types; that also keeps a browser's form from being a request.

    Raises:
        A2AError: CONTENT_TYPE_NOT_SUPPORTED.
    """
    if exchange.media_type not in (JSON, A2A_JSON):
        raise A2AError(Kind.CONTENT_TYPE_NOT_SUPPORTED, f"send {JSON}")


def _request_id(body: object) -> RequestId:
    """Return the id to answer with; None for what cannot be one."""
    found = body.get("id") if isinstance(body, dict) else None
    if isinstance(found, bool) or not isinstance(found, str | int):
        return None
    return found if not isinstance(found, str) or len(found) <= _MAX_ID_CHARS else None


def _envelope(body: object) -> tuple[Method, object]:
    """Return method and parameters.

    Raises:
        A2AError: INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS.
    """
    if isinstance(body, list):
        raise A2AError(Kind.INVALID_REQUEST, "A2A has no batches; send one request")
    if not isinstance(body, dict) or body.get("jsonrpc") != "2.0":
        raise A2AError(Kind.INVALID_REQUEST, 'a JSON-RPC 2.0 request is an object with jsonrpc: "2.0"')
    if "id" in body and body["id"] is not None and _request_id(body) is None:
        raise A2AError(Kind.INVALID_REQUEST, "id must be text, a whole number or null")
    name = body.get("method")
    if not isinstance(name, str) or not name:
        raise A2AError(Kind.INVALID_REQUEST, "method must be text")
    method = find_method(name)
    params = body.get("params", {})
    if not isinstance(params, dict):
        raise invalid("params must be an object", "params")
    return method, params


async def _refuse(exchange: Exchange, request_id: RequestId, error: A2AError) -> None:
    codes = error.kind.value
    status = 200 if codes.standard else codes.http
    body = orjson.dumps(writing.rpc_error(request_id, error))
    await exchange.respond(status, body, JSON, [("cache-control", "no-store"), *error.headers])


def _extension_headers(call: Call) -> list[tuple[str, str]]:
    return [("a2a-extensions", ", ".join(call.active))] if call.active else []
