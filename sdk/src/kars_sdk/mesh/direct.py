"""The mesh over gRPC and mTLS, without a router: for a laptop, an operator's tool, or a test.

The caller makes the channels (certificate, roots, target name); this module speaks the contract on them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from kars.mesh.v1 import identity_pb2, identity_pb2_grpc, registry_pb2_grpc, relay_pb2, relay_pb2_grpc

from kars_sdk.mesh.errors import TransportError
from kars_sdk.mesh.transport import FATAL_REASONS, Outgoing, Prove, Refused, refusals, submissions

_CALL_TIMEOUT_S = 15.0
_RECEIPT_TIMEOUT_S = 30.0
_Response = TypeVar("_Response", bound=Message)
_Call: TypeAlias = "grpc.aio.StreamStreamCall[relay_pb2.AttachRequest, relay_pb2.AttachResponse]"


class Direct:
    """Transport and Registry on gRPC channels. A new channel is asked for with each attachment."""

    def __init__(
        self,
        relay: Callable[[], grpc.aio.Channel],
        *,
        registry: grpc.aio.Channel | None = None,
        controller: grpc.aio.Channel | None = None,
    ) -> None:
        self._relay = relay
        self._registry = registry
        self._controller = controller

    async def call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        """See `transport.Registry`."""
        if self._registry is None:
            raise TransportError("registry_not_configured", "no channel to a registry was given", fatal=True)
        answer = await _called(getattr(registry_pb2_grpc.RegistryStub(self._registry), method), request)
        if not isinstance(answer, response):
            raise TransportError("answer_malformed", f"{method} answers with {type(answer).__name__}")
        return answer

    async def issue_statement(
        self, request: identity_pb2.IssueStatementRequest
    ) -> identity_pb2.IssueStatementResponse:
        """See `transport.Registry`."""
        if self._controller is None:
            raise TransportError(
                "controller_not_configured", "no channel to a controller was given", fatal=True
            )
        answer = await _called(identity_pb2_grpc.MeshIdentityStub(self._controller).IssueStatement, request)
        if not isinstance(answer, identity_pb2.IssueStatementResponse):
            raise TransportError("answer_malformed", "the controller answered with something else")
        return answer

    @contextlib.asynccontextmanager
    async def attach(self, prove: Prove) -> AsyncIterator["DirectLink"]:
        """See `transport.Transport`."""
        channel = self._relay()
        call = relay_pb2_grpc.RelayStub(channel).Attach()
        link = DirectLink(call)
        reader: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                await link.greet(prove)
            reader = asyncio.create_task(link.read(), name="mesh-direct-reader")
            yield link
        except TimeoutError as exc:
            raise TransportError("relay_unreachable", "the relay did not answer in time") from exc
        except grpc.aio.AioRpcError as exc:
            raise failure(exc) from exc
        finally:
            if reader is not None:
                reader.cancel()
                await asyncio.wait([reader])
            call.cancel()
            await channel.close(None)


class DirectLink:
    """See `transport.Link`. Envelopes are numbered over the whole stream; a receipt covers all up to one."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._welcome = relay_pb2.Welcome()
        self._submitted = 0
        self._decided = 0
        self._refused: list[relay_pb2.Refusal] = []
        self._changed = asyncio.Condition()
        self._incoming: asyncio.Queue[relay_pb2.AttachResponse | TransportError] = asyncio.Queue(maxsize=64)
        self._ended: TransportError | None = None
        self._writing = asyncio.Lock()

    @property
    def welcome(self) -> relay_pb2.Welcome:
        """See `transport.Link`."""
        return self._welcome

    async def greet(self, prove: Prove) -> None:
        """Read hello, prove, read welcome. Frames that come with it are kept."""
        first = await self._read()
        await self._call.write(relay_pb2.AttachRequest(connect=prove(first.hello)))
        while not self._welcome.max_payload_bytes:
            frame = await self._read()
            if frame.HasField("welcome"):
                self._welcome = frame.welcome
            if frame.deliveries or frame.HasField("notice"):
                self._incoming.put_nowait(frame)

    async def read(self) -> None:
        """Take frames off the stream until it ends. A full queue stops reading: the relay's window holds."""
        try:
            while True:
                frame = await self._read()
                if frame.HasField("receipt"):
                    await self._receipt(frame.receipt)
                if frame.deliveries or frame.HasField("notice"):
                    await self._incoming.put(frame)
        except TransportError as exc:
            self._ended = exc
        except grpc.aio.AioRpcError as exc:
            self._ended = failure(exc)
        async with self._changed:
            self._changed.notify_all()
        await self._incoming.put(self._ended)

    async def frames(self) -> AsyncIterator[relay_pb2.AttachResponse]:
        """See `transport.Link`."""
        while True:
            frame = await self._incoming.get()
            if isinstance(frame, TransportError):
                raise frame
            yield frame

    async def submit(self, batch: Sequence[Outgoing]) -> list[Refused]:
        """See `transport.Link`."""
        async with self._writing:
            first = self._submitted + 1
            self._submitted += len(batch)
            await self._write(relay_pb2.AttachRequest(submissions=submissions(batch)))
        last = first + len(batch) - 1
        try:
            async with asyncio.timeout(_RECEIPT_TIMEOUT_S), self._changed:
                await self._changed.wait_for(lambda: self._decided >= last or self._ended is not None)
        except TimeoutError as exc:
            raise TransportError("receipt_timeout", "the relay gave no receipt in time") from exc
        if self._decided < last:
            raise self._ended or TransportError("relay_unreachable", "the attachment ended")
        receipt = relay_pb2.Receipt(decided_through=self._decided, refusals=self._refused)
        self._refused = [each for each in self._refused if each.number + each.count - 1 > last]
        return refusals(receipt, first=first, count=len(batch))

    async def ack(self, through: int) -> None:
        """See `transport.Link`."""
        async with self._writing:
            await self._write(relay_pb2.AttachRequest(ack_through=through))

    async def _receipt(self, receipt: relay_pb2.Receipt) -> None:
        async with self._changed:
            self._decided = max(self._decided, receipt.decided_through)
            self._refused.extend(receipt.refusals)
            self._changed.notify_all()

    async def _read(self) -> relay_pb2.AttachResponse:
        frame = await self._call.read()
        if isinstance(frame, relay_pb2.AttachResponse):
            return frame
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            raise TransportError("relay_ended", "the relay ended the attachment")
        raise grpc.aio.AioRpcError(
            code,
            await self._call.initial_metadata(),
            await self._call.trailing_metadata(),
            details=await self._call.details(),
        )

    async def _write(self, frame: relay_pb2.AttachRequest) -> None:
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as exc:
            raise self._ended or TransportError("relay_unreachable", "the attachment has ended") from exc


async def _called(method: Callable[..., Awaitable[Message]], request: Message) -> Message:
    try:
        return await method(request, timeout=_CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as exc:
        raise failure(exc) from exc


def failure(exc: grpc.aio.AioRpcError) -> TransportError:
    """Return a gRPC failure with the reason that the service gave."""
    reason, retry = exc.code().name.lower(), 0.0
    for key, value in exc.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    reason = info.reason[:64]
                    retry = float(info.metadata.get("retry_after_ms", "0")) / 1000
    return TransportError(
        reason, (exc.details() or reason)[:512], fatal=reason in FATAL_REASONS, retry_after_s=retry
    )
