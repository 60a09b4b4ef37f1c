"""The gRPC binding: `lf.a2a.v1.A2AService`, with the agent in `tenant` (`namespace/name`).

Requests are parsed here and not by gRPC, so that what is malformed is answered as A2A says, and not as
INTERNAL.
"""

# ruff: noqa: ANN401  # gRPC is generic over messages

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message
from google.rpc import (  # type: ignore[import-untyped]  # ships no stubs
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc_status import rpc_status

from kars_a2a_gateway.callers.principals import Credentials
from kars_a2a_gateway.errors import DOMAIN, A2AError, Kind
from kars_a2a_gateway.operations.admission import Admission, Call, Knock
from kars_a2a_gateway.operations.dispatch import METHODS, Dispatcher, Method
from kars_a2a_gateway.settings import MAX_BODY_BYTES

_LOG = logging.getLogger(__name__)
SERVICE = "lf.a2a.v1.A2AService"
_MAX_METADATA_BYTES = 16 * 1024


class GrpcDoor:
    """Serves A2A over gRPC on one or two ports."""

    def __init__(
        self, admission: Admission, dispatcher: Dispatcher, root_agent: Callable[[], str], *, max_rpcs: int
    ) -> None:
        self._admission = admission
        self._dispatcher = dispatcher
        self._root_agent = root_agent
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_BODY_BYTES),
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                ("grpc.max_concurrent_streams", 1024),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_ping_strikes", 3),
                ("grpc.max_connection_idle_ms", 300_000),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=max_rpcs,
        )
        handlers = {name: self._handler(method) for name, method in METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Add a port; returns its number.

        Raises:
            OSError: the address cannot be bound.
        """
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as exc:
            raise OSError(f"cannot listen on {address}") from exc

    async def start(self) -> None:
        """Serve."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let open ones finish."""
        await self._server.stop(grace_s)

    def _handler(self, method: Method) -> Any:
        parse = _parser(method)
        if method.streams:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method), request_deserializer=parse, response_serializer=_serialize
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method), request_deserializer=parse, response_serializer=_serialize
        )

    def _unary(self, method: Method) -> Callable[[Any, Any], Awaitable[Message]]:
        async def answer(request: Any, context: Any) -> Message:
            async with self._around(method, request, context) as call:
                result = await self._dispatcher.unary(call, method, request)
                await _echo_extensions(context, call)
                return result
            raise AssertionError("aborted")  # unreachable: `abort` raises

        return answer

    def _streaming(self, method: Method) -> Callable[[Any, Any], AsyncIterator[Message]]:
        async def answer(request: Any, context: Any) -> AsyncIterator[Message]:
            async with self._around(method, request, context) as call:
                stream = self._dispatcher.stream(call, method, request)
                async with contextlib.aclosing(stream):
                    async for event in stream:
                        yield event

        return answer

    @contextlib.asynccontextmanager
    async def _around(self, method: Method, request: Any, context: Any) -> AsyncIterator[Call]:
        """Let a call in, and answer whatever goes wrong."""
        # A caller that names no agent means the one that policy puts at the root, if any.
        knock = _knock(request, context, self._root_agent())
        call: Call | None = None
        try:
            exposure, _ = self._admission.find(knock.agent)
            call = await self._admission.enter(knock)
            _check_parsed(request, exposure.limits.max_body_bytes)
            yield call
        except A2AError as error:
            self._admission.refused(knock, method.name, error, call)
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception:  # noqa: BLE001  # the boundary: a bug ends one call, and its text stays inside
            _LOG.exception("a call failed")
            await _abort(context, A2AError(Kind.INTERNAL_ERROR, "the gateway failed to answer"))


def _parser(method: Method) -> Callable[[bytes], Any]:
    def parse(raw: bytes) -> Any:
        try:
            return method.request.FromString(raw)
        except DecodeError:
            return A2AError(Kind.INVALID_REQUEST, "the request is not a message of A2A 1.0")

    return parse


def _check_parsed(request: Any, limit: int) -> None:
    """Refuse what could not be parsed, or is too large for this agent.

    Raises:
        A2AError: INVALID_REQUEST, PAYLOAD_TOO_LARGE.
    """
    if isinstance(request, A2AError):
        raise request
    if request.ByteSize() > limit:
        raise A2AError(Kind.PAYLOAD_TOO_LARGE, f"the request has more than {limit} bytes")


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _knock(request: Any, context: Any, root_agent: str) -> Knock:
    metadata: dict[str, list[str]] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            metadata.setdefault(key, []).append(value)
    return Knock(
        agent=str(getattr(request, "tenant", "")) or root_agent,
        credentials=Credentials(
            certificate_der=_certificate(context),
            authorization=tuple(metadata.get("authorization", ())),
            api_key=tuple(metadata.get("x-api-key", ())),
        ),
        version=metadata.get("a2a-version", [""])[0],
        missing_version="1.0",
        extensions=tuple(metadata.get("a2a-extensions", ())),
        peer=context.peer().removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0],
    )


def _certificate(context: Any) -> bytes | None:
    pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
    if not pem:
        return None
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except ValueError:
        return b""  # not a certificate that can be read: judged, and refused, as one


async def _echo_extensions(context: Any, call: Call) -> None:
    if call.active:
        await context.send_initial_metadata((("a2a-extensions", ", ".join(call.active)),))


async def _abort(context: Any, error: A2AError) -> None:
    codes = error.kind.value
    status = status_pb2.Status(code=code_pb2.Code.Value(codes.grpc.name), message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.kind.reason, domain=DOMAIN, metadata=dict(error.metadata))
    status.details.add().Pack(info)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        status.details.add().Pack(bad)
    answer = rpc_status.to_status(status)
    # A challenge and Retry-After are as useful here as in HTTP.
    metadata = (*answer.trailing_metadata, *error.headers)
    await context.abort(answer.code, answer.details, metadata)


__all__ = ["SERVICE", "GrpcDoor"]
