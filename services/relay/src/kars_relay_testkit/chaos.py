"""Peers that go on while relays die: what an honest client does, without a ratchet.

A sender keeps what has no receipt and submits it again, in order, on its next connection. A receiver accepts
each (sender, id) once, then acknowledges. What they have seen is compared at the end.
"""

import asyncio
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import grpc

from kars_relay_testkit.client import PeerStream, Received
from kars_relay_testkit.world import TestPeer

_IN_FLIGHT = 64
Ports = Callable[[], Sequence[int]]
_LOST = (grpc.aio.AioRpcError, ConnectionError, TimeoutError, asyncio.InvalidStateError)


async def attached(peer: TestPeer, ports: Ports) -> PeerStream:
    """Attach somewhere, however long it takes."""
    while True:
        stream = PeerStream(peer, random.choice(ports()))
        try:
            await stream.open()
            return await stream.connect()
        except _LOST:
            await stream.close()
            await asyncio.sleep(random.uniform(0.02, 0.1))


class Sender:
    """Sends numbered messages to one peer until told to stop."""

    def __init__(self, peer: TestPeer, to: TestPeer, ports: Ports) -> None:
        self.peer = peer
        self.to = to
        self.stopping = False
        self.accepted: list[bytes] = []
        """Payloads with a receipt, in the order of submission."""
        self.connections = 0
        self._ports = ports
        self._open: deque[tuple[bytes, bytes]] = deque()
        self._number = 0

    @property
    def waiting(self) -> int:
        """How many have no receipt."""
        return len(self._open)

    async def run(self) -> None:
        """Send; ends when everything has a receipt after `stopping`."""
        while not self.stopping or self._open:
            stream = await attached(self.peer, self._ports)
            self.connections += 1
            try:
                await self._converse(stream)
            except _LOST:
                pass
            finally:
                await stream.close()

    async def _converse(self, stream: PeerStream) -> None:
        decided = 0
        if self._open:
            ids, payloads = zip(*self._open, strict=True)
            await stream.submit(self.to, payloads, ids=ids)
        while not self.stopping or self._open:
            fresh: list[tuple[bytes, bytes]] = []
            while not self.stopping and len(self._open) < _IN_FLIGHT and len(fresh) < 16:
                self._number += 1
                fresh.append((os.urandom(16), b"%d" % self._number))
                self._open.append(fresh[-1])
            if fresh:
                ids, payloads = zip(*fresh, strict=True)
                await stream.submit(self.to, payloads, ids=ids)
            await stream.progress(decided)
            if stream.refusals:
                raise AssertionError(f"refused: {stream.refusals}")
            while decided < stream.decided:
                decided += 1
                self.accepted.append(self._open.popleft()[1])


class Receiver:
    """Accepts each message once and acknowledges it after that."""

    def __init__(self, peer: TestPeer, ports: Ports) -> None:
        self.peer = peer
        self.seen: dict[str, list[bytes]] = {}
        self.redelivered = 0
        self.ready = asyncio.Event()
        self._ports = ports
        self._ids: set[tuple[str, bytes]] = set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            stream = await attached(self.peer, self._ports)
            self.ready.set()  # it has a mailbox now
            try:
                while True:
                    for received in await stream.receive(1, 60):
                        self._accept(received)
                    while stream.received:
                        self._accept(stream.received.popleft())
                    await stream.ack()
            except _LOST:
                pass
            finally:
                await stream.close()

    def _accept(self, received: Received) -> None:
        key = (received.sender, received.id)
        if key in self._ids:
            self.redelivered += 1
            return
        self._ids.add(key)
        self.seen.setdefault(received.sender, []).append(received.payload)
        self._changed.set()

    async def wait_for(self, sender: str, count: int) -> None:
        """Wait until so many messages of a sender were accepted."""
        while len(self.seen.get(sender, ())) < count:
            self._changed.clear()
            await self._changed.wait()


async def storm(
    senders: Sequence[Sender], receivers: Sequence[Receiver], trouble: Callable[[], Awaitable[None]]
) -> None:
    """Run everybody, make trouble, and compare: all that had a receipt, once, in order of each sender."""
    receiving = [asyncio.create_task(each.run(), name=f"receive {each.peer}") for each in receivers]
    await asyncio.gather(*[each.ready.wait() for each in receivers])
    by_name = {str(receiver.peer): receiver for receiver in receivers}
    sending = [asyncio.create_task(each.run(), name=f"send {each.peer}") for each in senders]
    try:
        await trouble()
        for sender in senders:
            sender.stopping = True
        async with asyncio.timeout(60):
            await asyncio.gather(*sending)
            waits = [by_name[str(each.to)].wait_for(str(each.peer), len(each.accepted)) for each in senders]
            await asyncio.gather(*waits)
    except TimeoutError:
        state = [f"{each.peer}: {len(each.accepted)} accepted, {each.waiting} open" for each in senders]
        state += [
            f"{name} of {sender}: {len(seen)}"
            for name, each in by_name.items()
            for sender, seen in each.seen.items()
        ]
        raise AssertionError(f"not everything arrived: {'; '.join(state)}") from None
    finally:
        for task in (*receiving, *sending):
            task.cancel()
        await asyncio.gather(*receiving, *sending, return_exceptions=True)
    for sender in senders:
        seen = by_name[str(sender.to)].seen[str(sender.peer)]
        expected = [b"%d" % number for number in range(1, len(sender.accepted) + 1)]
        if sender.accepted != expected:
            raise AssertionError(f"receipts of {sender.peer} are out of order")
        if seen != expected:
            wrong = next(i for i, (a, b) in enumerate(zip(seen, expected, strict=False)) if a != b)
            raise AssertionError(f"{sender.peer} at {wrong}: {seen[wrong - 2 : wrong + 3]}")
