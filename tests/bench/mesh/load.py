"""Load for the relay and the echo: closed-loop clients in pairs, each writing and reading at once.

Frames are formed the way a client should: whatever its window allows on this turn of the loop, up to 64
envelopes, no timer. Acknowledgements ride on the next frame.
"""

import asyncio
import contextlib
import os
import statistics
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import nats
from kars.mesh.v1 import relay_pb2
from kars_relay.frames.writing import varint
from kars_relay_testkit import PeerStream, TestPeer, channel

IN_FLIGHT = 256
BATCH = 64


@dataclass
class Tally:
    """What one subject carried in one window of time."""

    envelopes: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.envelopes / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.envelopes * 1e6

    def percentile_us(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_s, n=100)[percent - 1] * 1e6


class Envelopes:
    """Serialised submissions with fresh ids; built by hand so that the load costs little."""

    def __init__(self, to: str, payload_bytes: int) -> None:
        payload = os.urandom(payload_bytes)
        self._to = b"\x0a" + varint(len(to)) + to.encode()
        tail = b"\x12" + varint(len(payload)) + payload
        self._head = b"\x12" + varint(18 + len(tail)) + b"\x0a\x10" + os.urandom(8)
        self._tail = tail
        self._number = int.from_bytes(os.urandom(4), "big") << 20

    def frame(self, count: int) -> bytes:
        parts = [self._to]
        for _ in range(count):
            self._number += 1
            parts += [self._head, struct.pack(">Q", self._number), self._tail]
        body = b"".join(parts)
        return b"\x0a" + varint(len(body)) + body


class RelayClient:
    """One attached peer that writes to one other and reads what comes."""

    def __init__(self, stream: PeerStream, to: TestPeer, payload_bytes: int) -> None:
        self._stream = stream
        self._envelopes = Envelopes(str(to), payload_bytes)
        self._wake = asyncio.Event()
        self.submitted = self.decided = self.delivered = self.acked = self.last_seq = 0
        self.refused = 0
        self.running = True

    async def write(self) -> None:
        call = self._stream.call
        while self.running:
            room = min(IN_FLIGHT - (self.submitted - self.decided), BATCH)
            frame = self._envelopes.frame(room) if room > 0 else b""
            self.submitted += max(room, 0)
            if self.last_seq > self.acked:
                frame += b"\x18" + varint(self.last_seq)
                self.acked = self.last_seq
            if frame:
                await call.write(frame)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def read(self) -> None:
        call = self._stream.call
        while (frame := await call.read()) is not grpc.aio.EOF:
            response = relay_pb2.AttachResponse.FromString(frame)
            for run in response.deliveries:
                count = len(run.envelopes)
                self.delivered += count
                self.last_seq = run.first_seq + count - 1
            if response.HasField("receipt"):
                self.decided = response.receipt.decided_through
                self.refused += len(response.receipt.refusals)
            self._wake.set()


class EchoClient:
    """One stream whose frames come back."""

    def __init__(self, call: Any, to: TestPeer, payload_bytes: int) -> None:
        self._call = call
        self._envelopes = Envelopes(str(to), payload_bytes)
        self._wake = asyncio.Event()
        self._sent: list[int] = []
        self.in_flight = self.delivered = self.refused = 0
        self.running = True

    async def write(self) -> None:
        while self.running:
            room = min(IN_FLIGHT - self.in_flight, BATCH)
            if room <= 0:
                self._wake.clear()
                await self._wake.wait()
                continue
            self.in_flight += room
            self._sent.append(room)
            await self._call.write(self._envelopes.frame(room))

    async def read(self) -> None:
        while (frame := await self._call.read()) is not grpc.aio.EOF:
            relay_pb2.AttachRequest.FromString(frame)  # what the relay's client pays as well
            count = self._sent.pop(0)
            self.in_flight -= count
            self.delivered += count
            self._wake.set()


class NatsClient:
    """One NATS connection that publishes to one other and counts what comes; no acknowledgement, no store."""

    def __init__(self, connection: Any, to: str, payload_bytes: int) -> None:
        self._connection = connection
        self._to = to
        self._payload = os.urandom(payload_bytes)
        self._wake = asyncio.Event()
        self._partner = 0
        self.sent = self.delivered = self.refused = 0
        self.running = True

    @classmethod
    async def connect(cls, port: int, context: Any, number: int, payload_bytes: int) -> "NatsClient":
        connection = await nats.connect(
            f"tls://127.0.0.1:{port}", tls=context, tls_hostname="relay.svc.kars.local", pending_size=8 << 20
        )
        client = cls(connection, f"bench.{number ^ 1}", payload_bytes)

        async def received(_message: Any) -> None:
            client.delivered += 1
            sender = _NATS.get(number ^ 1)
            if sender is not None and sender.sent - client.delivered <= IN_FLIGHT // 2:
                sender._wake.set()

        await connection.subscribe(f"bench.{number}", cb=received)
        await connection.flush()
        _NATS[number] = client
        client._partner = number ^ 1
        return client

    async def write(self) -> None:
        while self.running:
            partner = _NATS.get(self._partner)
            room = IN_FLIGHT - (self.sent - (partner.delivered if partner else 0))
            if room <= 0 or partner is None:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self._wake.wait()
                continue
            for _ in range(min(room, BATCH)):
                await self._connection.publish(self._to, self._payload)
                self.sent += 1
            await asyncio.sleep(0)

    async def read(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        _NATS.clear()
        await self._connection.close()


_NATS: dict[int, NatsClient] = {}


async def paced(
    streams: list[PeerStream], peers: list[TestPeer], payload_bytes: int, *, per_s: int, seconds: float
) -> Tally:
    """Send single envelopes at an even pace and time each from before its write until it is read."""
    tally = Tally(seconds=seconds)
    sent_at: dict[bytes, float] = {}
    arrived = [0]
    writing = {id(stream): asyncio.Lock() for stream in streams}  # gRPC takes one write at a time

    async def read(stream: PeerStream) -> None:
        while (frame := await stream.call.read()) is not grpc.aio.EOF:
            now = time.perf_counter()
            response = relay_pb2.AttachResponse.FromString(frame)
            last = 0
            arrived[0] += len(response.deliveries)
            for run in response.deliveries:
                last = run.first_seq + len(run.envelopes) - 1
                for envelope in run.envelopes:
                    begun = sent_at.pop(envelope.id, None)
                    if begun is not None:  # others were left over from an earlier window
                        tally.latencies_s.append(now - begun)
                        tally.envelopes += 1
            if last:
                async with writing[id(stream)]:
                    await stream.call.write(b"\x18" + varint(last))

    tasks = [asyncio.create_task(read(stream)) for stream in streams]
    payload = os.urandom(payload_bytes)
    loop = asyncio.get_running_loop()
    seen = -1
    while seen != arrived[0]:  # what an earlier window left unacknowledged is delivered first
        seen = arrived[0]
        await asyncio.sleep(0.5)
    begun = loop.time()
    for number in range(int(per_s * seconds)):
        await asyncio.sleep(max(0.0, begun + number / per_s - loop.time()))
        place = number % len(streams)
        envelope = relay_pb2.Envelope(id=os.urandom(16), payload=payload)
        submission = relay_pb2.Submission(to=str(peers[place ^ 1]), envelopes=[envelope])
        frame = relay_pb2.AttachRequest(submissions=[submission]).SerializeToString()
        sent_at[envelope.id] = time.perf_counter()
        async with writing[id(streams[place])]:
            await streams[place].call.write(frame)
    async with asyncio.timeout(10):
        while sent_at:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return tally


def raw_attach(opened: grpc.aio.Channel) -> Any:
    """Return a call of `Relay.Attach` that writes bytes and reads bytes."""
    return opened.stream_stream("/kars.mesh.v1.Relay/Attach")()


async def attach_raw(peer: TestPeer, port: int) -> PeerStream:
    """Attach a peer and leave its stream in bytes."""
    stream = PeerStream(peer, port, relay_pb2.Window(max_envelopes=1024, max_bytes=4 * 1024 * 1024))
    stream.channel = channel(peer.svid, port, peer.name.trust_domain)
    stream.call = raw_attach(stream.channel)
    stream.hello = relay_pb2.AttachResponse.FromString(await stream.call.read()).hello
    await stream.call.write(relay_pb2.AttachRequest(connect=stream.make_connect()).SerializeToString())
    response = relay_pb2.AttachResponse.FromString(await stream.call.read())
    assert response.HasField("welcome"), response
    return stream


async def closed_loop(clients: list[Any], cpu_s: Any, *, warmup_s: float, seconds: float) -> Tally:
    """Run clients for a while and count what arrived in the middle of it."""
    tasks = [asyncio.create_task(work) for client in clients for work in (client.write(), client.read())]
    await asyncio.sleep(warmup_s)
    begun, cpu, before = time.perf_counter(), cpu_s(), sum(client.delivered for client in clients)
    await asyncio.sleep(seconds)
    tally = Tally(
        envelopes=sum(client.delivered for client in clients) - before,
        seconds=time.perf_counter() - begun,
        cpu_s=cpu_s() - cpu,
    )
    for task in tasks:
        if task.done() and task.exception() is not None:
            raise RuntimeError("a client failed") from task.exception()
    for client in clients:
        client.running = False
        assert not client.refused, "an envelope was refused"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return tally
