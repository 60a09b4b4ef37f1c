"""One stream to the relay: hello to the agent, its connect back, then envelopes both ways until it breaks.

Numbers, window and acknowledgements belong to the stream and end with it. What policy does not let in is
dropped here; what is let in is on record before the agent sees it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import grpc
from kars.mesh.v1 import relay_pb2
from kars_common.errors import DeadlineExceededError, FailedPreconditionError, KarsError, UnavailableError
from kars_common.rpc import PeerChannel
from kars_common.tasks import Backoff

from kars_router.mesh import frames
from kars_router.mesh.inbox import Acknowledgements, Inbox, split
from kars_router.mesh.inflight import InFlight, Run, lost

_FIRST_FRAME_S = 10.0
_WELCOME_S = 10.0
_RECEIPT_S = 30.0


class Records(Protocol):
    """What the bridge tells the audit log, and waits for."""

    def event(self, kind: str, fields: Mapping[str, Any]) -> int:
        """Write a record."""

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        """Wait until a record is on disk."""


@dataclass(frozen=True, kw_only=True)
class BridgeParts:
    """What a bridge works with."""

    open_relay: Callable[[], PeerChannel]
    """Returns the channel to the relay that policy names; raises KarsError while there is none."""
    may_receive: Callable[[str], bool]
    records: Records
    sandbox: str
    on_frame: Callable[[str, str, int], None] = lambda _direction, _type, _count: None
    """Told (direction, type, envelopes) of every frame, for metrics."""
    backoff: Callable[[], Backoff] = Backoff
    receipt_s: float = _RECEIPT_S


class RelayStream:
    """One stream to the relay."""

    def __init__(self, call: Any, parts: BridgeParts, inbox: Inbox) -> None:  # noqa: ANN401 - grpc's
        self.state = "connecting"
        self.relay = ""
        self._call = call
        self._parts = parts
        self._inbox = inbox
        self._acks = Acknowledgements()
        self._in_flight: InFlight | None = None
        self._welcome: asyncio.Future[relay_pb2.Welcome] | None = None
        self._writing = asyncio.Lock()
        self._closed = False

    async def greet(self) -> None:
        """Wait for the relay's hello and pass it to the agent."""
        try:
            async with asyncio.timeout(_FIRST_FRAME_S):
                first = await self._call.read()
        except TimeoutError as exc:
            raise UnavailableError("relay_unavailable", "the relay did not greet in time") from exc
        if first is grpc.aio.EOF:
            await self._raise_end()
        if not first.HasField("hello"):
            raise FailedPreconditionError("relay_protocol", "the relay did not begin with hello")
        self.relay, self.state = first.hello.relay, "greeted"
        await self._inbox.put(first.SerializeToString())

    async def run(self, backoff: Backoff) -> None:
        """Read until the stream ends; raises the reason."""
        while True:
            response = await self._call.read()
            if response is grpc.aio.EOF:
                await self._raise_end()
            if response.HasField("welcome"):
                backoff.reset()
            await self._take(response)

    async def connect(self, connect: relay_pb2.Connect) -> relay_pb2.Welcome:
        """As `Bridge.connect`."""
        if self._welcome is not None:
            raise FailedPreconditionError(
                "mesh_attached_already", "this stream is connected; wait for a hello"
            )
        self._welcome = asyncio.get_running_loop().create_future()
        self._welcome.add_done_callback(lambda future: future.cancelled() or future.exception())
        await self._write(relay_pb2.AttachRequest(connect=connect), "connect", 0)
        try:
            async with asyncio.timeout(_WELCOME_S):
                return await asyncio.shield(self._welcome)
        except TimeoutError as exc:
            raise DeadlineExceededError("mesh_connect_timeout", "the relay did not answer in time") from exc

    async def submit(self, submissions: tuple[relay_pb2.Submission, ...]) -> list[relay_pb2.Refusal]:
        """As `Bridge.submit`."""
        found: list[relay_pb2.Refusal] = []
        runs = [await self._submit_chunk(chunk) for chunk in frames.chunks(submissions)]
        before = 0
        for run in runs:
            await asyncio.shield(run.decided)
            for place, refusal in run.refusals:
                refusal.number = before + place + 1
                found.append(refusal)
            before += run.count
        return found

    async def acknowledge(self, frame: relay_pb2.AttachRequest) -> None:
        """As `Bridge.acknowledge`."""
        passed = relay_pb2.AttachRequest()
        passed.CopyFrom(frame)
        if frame.ack_through:
            passed.ack_through = self._acks.acknowledge(frame.ack_through)
        if passed.ByteSize():
            await self._write(passed, "ack", 0)

    def close(self, error: KarsError) -> None:
        """Give the stream up; who waits for a welcome learns why."""
        self._closed = True
        self.state = "connecting"
        self._call.cancel()
        if self._in_flight is not None:
            self._in_flight.fail()
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(error)

    async def _submit_chunk(self, chunk: relay_pb2.Submission) -> Run:
        in_flight, count = self._in_flight, len(chunk.envelopes)
        if in_flight is None or self._closed:
            raise lost()
        size = sum(len(envelope.payload) for envelope in chunk.envelopes)
        # One writer at a time, from room to write: numbers must be those that the relay counts.
        async with self._writing:
            await in_flight.wait_room(count, size)
            if self._closed:
                raise lost()
            run = in_flight.add(count, size)
            await self._send(relay_pb2.AttachRequest(submissions=[chunk]), "message", count)
        return run

    async def _write(self, frame: relay_pb2.AttachRequest, kind: str, count: int) -> None:
        async with self._writing:
            await self._send(frame, kind, count)

    async def _send(self, frame: relay_pb2.AttachRequest, kind: str, count: int) -> None:
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as exc:
            raise lost() from exc
        self._parts.on_frame("sent", kind, count)

    async def _take(self, response: relay_pb2.AttachResponse) -> None:
        if response.HasField("welcome"):
            self._take_welcome(response.welcome)
        if response.HasField("receipt"):
            self._parts.on_frame("received", "receipt", 0)
            if self._in_flight is None or not self._in_flight.take(response.receipt):
                raise FailedPreconditionError(
                    "relay_protocol", "the relay confirmed what was never submitted"
                )
        if response.deliveries:
            await self._take_deliveries(list(response.deliveries))
        if response.HasField("notice"):
            self._parts.on_frame("received", "notice", 0)
            await self._inbox.put(relay_pb2.AttachResponse(notice=response.notice).SerializeToString())

    def _take_welcome(self, welcome: relay_pb2.Welcome) -> None:
        self._parts.on_frame("received", "welcome", 0)
        if self._welcome is None or self._welcome.done():
            raise FailedPreconditionError("relay_protocol", "the relay welcomed nobody")
        self._in_flight = InFlight(welcome.max_in_flight_envelopes, welcome.max_in_flight_bytes)
        self.state = "attached"
        self._welcome.set_result(welcome)

    async def _take_deliveries(self, deliveries: list[relay_pb2.Delivery]) -> None:
        kept, dropped = split(deliveries, self._parts.may_receive)
        records, seq = self._parts.records, -1
        refused = {id(delivery) for delivery in dropped}
        for delivery in deliveries:
            envelopes = len(delivery.envelopes)
            fields = {
                "sandbox": self._parts.sandbox,
                "peer": delivery.sender[:512],
                "envelopes": envelopes,
                "bytes": sum(len(envelope.payload) for envelope in delivery.envelopes),
                "first_seq": min(delivery.first_seq, 2**53 - 1),
            }
            is_dropped = id(delivery) in refused
            self._acks.delivered(delivery.first_seq + envelopes - 1, dropped=is_dropped)
            if is_dropped:
                records.event("mesh.delivery_refused", {**fields, "reason": "edge_forbidden"})
                self._parts.on_frame("refused", "message", envelopes)
            else:
                seq = records.event("mesh.delivered", fields)
                self._parts.on_frame("received", "message", envelopes)
        if kept:
            # Nothing reaches the agent before the record that it was let in is on disk.
            await records.durable(seq)
            await self._inbox.put(relay_pb2.AttachResponse(deliveries=kept).SerializeToString())
        if dropped:
            through = self._acks.acknowledge(0)
            if through:
                await self._write(relay_pb2.AttachRequest(ack_through=through), "ack", 0)

    async def _raise_end(self) -> NoReturn:
        """Raise what the relay ended the stream with."""
        await self._call  # raises AioRpcError unless it ended with OK
        raise UnavailableError("relay_unavailable", "the relay closed the stream")
