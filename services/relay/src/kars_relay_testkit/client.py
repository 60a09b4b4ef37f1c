"""A peer's side of `Relay.Attach` without any session: what a client does with bytes."""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from kars.mesh.v1 import relay_pb2, relay_pb2_grpc
from kars_common.rpc.credentials import channel_credentials
from kars_common.svid import Svid
from kars_relay.identity import connect_message

from kars_relay_testkit.world import TestPeer

TIMEOUT_S = 5.0


def channel(svid: Svid, port: int, trust_domain: str = "kars.local") -> grpc.aio.Channel:
    """Return a channel of its own to a relay."""
    name = f"relay.svc.{trust_domain}"
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        channel_credentials(svid),
        options=[
            ("grpc.ssl_target_name_override", name),
            ("grpc.default_authority", name),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", 8 * 1024 * 1024),
            ("grpc.max_send_message_length", 8 * 1024 * 1024),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ],
    )


@dataclass(frozen=True, slots=True)
class Received:
    """One envelope."""

    seq: int
    sender: str
    id: bytes
    payload: bytes


class PeerStream:
    """One attached peer. Reads only when asked to."""

    def __init__(self, peer: TestPeer, port: int, window: relay_pb2.Window | None = None) -> None:
        self.peer = peer
        self.window = window or relay_pb2.Window()
        self.channel = channel(peer.svid, port, peer.name.trust_domain)
        self.call: Any = None
        self._reading: asyncio.Task[object] | None = None
        self.welcome = relay_pb2.Welcome()
        self.hello = relay_pb2.Hello()
        self.received: deque[Received] = deque()
        self.refusals: list[relay_pb2.Refusal] = []
        self.notices: list[relay_pb2.Notice] = []
        self.submitted = 0
        self.decided = 0
        self.last_seq = 0

    async def open(self) -> Self:
        """Connect and read hello."""
        self.call = relay_pb2_grpc.RelayStub(self.channel).Attach()
        self.hello = (await self._read()).hello
        return self

    async def connect(self, connect: relay_pb2.Connect | None = None) -> Self:
        """Prove who we are and wait for welcome."""
        if connect is None:
            connect = self.make_connect()
        await self.call.write(relay_pb2.AttachRequest(connect=connect))
        while not self.welcome.max_payload_bytes:
            self._take(await self._read())
        return self

    def make_connect(self) -> relay_pb2.Connect:
        """Return an honest connect for this stream."""
        message = connect_message(self.hello.nonce, self.hello.relay, str(self.peer))
        return relay_pb2.Connect(
            peer=str(self.peer),
            identity=self.peer.statement,
            proof=self.peer.identity.sign(message),
            window=self.window,
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return await self.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connection."""
        if self.call is not None:
            self.call.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        await self.channel.close(None)

    async def submit(
        self, to: object, payloads: Sequence[bytes], *, ids: Sequence[bytes] | None = None, ttl_s: int = 0
    ) -> list[bytes]:
        """Send one frame; returns the ids."""
        ids = list(ids) if ids is not None else [os.urandom(16) for _ in payloads]
        envelopes = [
            relay_pb2.Envelope(id=i, payload=payload) for i, payload in zip(ids, payloads, strict=True)
        ]
        submission = relay_pb2.Submission(to=str(to), envelopes=envelopes, ttl_s=ttl_s)
        await self.call.write(relay_pb2.AttachRequest(submissions=[submission]))
        self.submitted += len(ids)
        return ids

    async def decide(self, timeout_s: float = TIMEOUT_S) -> list[relay_pb2.Refusal]:
        """Wait until everything submitted was decided; returns all refusals so far."""
        async with asyncio.timeout(timeout_s):
            while self.decided < self.submitted:
                self._take(await self._next())
        return self.refusals

    async def progress(self, beyond: int, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until more than `beyond` envelopes are decided."""
        async with asyncio.timeout(timeout_s):
            while self.decided <= beyond:
                self._take(await self._next())

    async def send(
        self, to: object, payloads: Sequence[bytes], *, ids: Sequence[bytes] | None = None, ttl_s: int = 0
    ) -> list[relay_pb2.Refusal]:
        """Submit and wait for the decision; returns refusals of this stream so far."""
        await self.submit(to, payloads, ids=ids, ttl_s=ttl_s)
        return await self.decide()

    async def receive(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Received]:
        """Wait for so many envelopes; not acknowledged."""
        async with asyncio.timeout(timeout_s):
            while len(self.received) < count:
                self._take(await self._next())
        return [self.received.popleft() for _ in range(count)]

    async def nothing(self, quiet_s: float = 0.3) -> bool:
        """Tell whether nothing arrives for a moment."""
        try:
            async with asyncio.timeout(quiet_s):
                while not self.received:
                    self._take(await self._next())
        except TimeoutError:
            return True
        return False

    async def ack(self, through: int | None = None) -> None:
        """Acknowledge up to a number; None for everything received."""
        await self.call.write(relay_pb2.AttachRequest(ack_through=through or self.last_seq))

    async def ended(self, timeout_s: float = TIMEOUT_S) -> grpc.aio.AioRpcError:
        """Wait until the relay ends the stream and return how."""
        async with asyncio.timeout(timeout_s):
            try:
                while True:
                    response = await self._next()
                    if response is grpc.aio.EOF:
                        break
                    self._take(response)
            except grpc.aio.AioRpcError as failure:
                return failure
        raise AssertionError("the stream ended without an error")

    async def _read(self) -> relay_pb2.AttachResponse:
        async with asyncio.timeout(TIMEOUT_S):
            response = await self._next()
        if not isinstance(response, relay_pb2.AttachResponse):
            raise await self.ended()
        return response

    async def _next(self) -> object:
        """Read; giving up waiting leaves the read to the next caller (cancelling it would end the call)."""
        if self._reading is None:
            self._reading = asyncio.create_task(self.call.read(), name=f"read of {self.peer}")
        await asyncio.wait({self._reading})
        done, self._reading = self._reading, None
        return done.result()

    def _take(self, response: object) -> None:
        if not isinstance(response, relay_pb2.AttachResponse):
            raise ConnectionError("the stream ended")
        if response.HasField("welcome"):
            self.welcome = response.welcome
        if response.HasField("notice"):
            self.notices.append(response.notice)
        if response.HasField("receipt"):
            self.decided = response.receipt.decided_through
            self.refusals += response.receipt.refusals
        for run in response.deliveries:
            for place, envelope in enumerate(run.envelopes):
                self.last_seq = run.first_seq + place
                self.received.append(Received(self.last_seq, run.sender, envelope.id, envelope.payload))
