"""Load for the relay and the echo: closed-loop clients in pairs, each writing and reading at once.

Frames are formed the way a client should: whatever its window allows on this turn of the loop, up to 64
envelopes, no timer. Acknowledgements ride on the next frame.
"""

import asyncio
import os
import statistics
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
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


async def closed_loop(
    clients: list[Any], cpu_s: Any, *, warmup_s: float, seconds: float
) -> Tally:
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
