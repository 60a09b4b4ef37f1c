"""How many calls of one door may be in flight, with a bounded queue before it."""

import asyncio
from collections import deque
from collections.abc import Callable


class Slots:
    """A counting limit whose queue is bounded in length and in time.

    `acquire` is fair (first come, first served). Cancelling a waiter gives its
    place away; nothing is lost.
    """

    def __init__(self, limit: int, queue_limit: int, wait_s: float) -> None:
        self.limit = limit
        self._queue_limit = queue_limit
        self._wait_s = wait_s
        self._in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._idle_waiters: list[asyncio.Future[None]] = []

    @property
    def in_flight(self) -> int:
        """Calls that hold a slot now."""
        return self._in_flight

    async def acquire(self, notify_queued: Callable[[], None] | None = None) -> bool:
        """Take a slot; False when the queue is full or the wait was too long."""
        if self._in_flight < self.limit and not self._waiters:
            self._in_flight += 1
            return True
        if len(self._waiters) >= self._queue_limit:
            return False
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if notify_queued is not None:
            notify_queued()
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter
        except TimeoutError:
            if not self._abandon(waiter):
                self.release()
            return False
        except asyncio.CancelledError:
            if not self._abandon(waiter):
                self.release()
            raise
        return True

    def release(self) -> None:
        """Give a slot back; the oldest waiter gets it."""
        self._in_flight -= 1
        while self._waiters and self._in_flight < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._in_flight += 1
                waiter.set_result(None)
        if self._in_flight == 0:
            for idle in self._idle_waiters:
                if not idle.done():
                    idle.set_result(None)
            self._idle_waiters.clear()

    async def idle(self) -> None:
        """Wait until no call holds a slot."""
        if self._in_flight:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(future)
            await future

    def _abandon(self, waiter: asyncio.Future[None]) -> bool:
        """Leave the queue; False when the slot had already been handed over."""
        try:
            self._waiters.remove(waiter)
        except ValueError:
            # `release` took it from the queue: with a result, the slot is ours to give back.
            return waiter.cancelled()
        return True
