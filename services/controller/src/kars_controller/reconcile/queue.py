"""The work queue: each key at most once in work, never lost while in work, retried with back-off.

A key that is added while it is worked on is worked on again afterwards. Waiting keys are timers; a sooner
addition replaces a later one.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from kars_common.tasks import Backoff

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """Keys to work on. Belongs to one event loop."""

    def __init__(self, *, first_retry_s: float = 0.5, most_retry_s: float = 60.0) -> None:
        self._first_retry_s = first_retry_s
        self._most_retry_s = most_retry_s
        self._ready: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._working: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._backoffs: dict[Key, Backoff] = {}
        self._filled = asyncio.Event()

    def add(self, key: Key, delay_s: float = 0.0) -> None:
        """Ask for work on a key, now or after a delay."""
        if delay_s <= 0:
            self._cancel_timer(key)
            self._push(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + delay_s:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(delay_s, self._due, key)

    async def get(self) -> Key:
        """Wait for a key and take it into work; `done` must follow."""
        while True:
            for _ in range(len(self._ready)):
                key = self._ready.popleft()
                if key in self._working:
                    self._ready.append(key)
                    continue
                self._queued.discard(key)
                self._working.add(key)
                return key
            self._filled.clear()
            await self._filled.wait()

    def done(self, key: Key) -> None:
        """Give a key back after it was worked on."""
        self._working.discard(key)
        if key in self._queued:
            self._filled.set()

    def succeeded(self, key: Key) -> None:
        """Begin again with short waits at the key's next failure."""
        self._backoffs.pop(key, None)

    def failed(self, key: Key) -> float:
        """Ask for another try after a wait that grows; return the wait."""
        backoff = self._backoffs.setdefault(
            key, Backoff(first_s=self._first_retry_s, most_s=self._most_retry_s)
        )
        wait_s = backoff.next_s()
        self.add(key, wait_s)
        return wait_s

    def close(self) -> None:
        """Stop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._push(key)

    def _push(self, key: Key) -> None:
        if key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
        self._filled.set()

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
