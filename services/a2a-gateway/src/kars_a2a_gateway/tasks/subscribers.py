"""Whoever listens to one task: a bounded queue each, in the order of the events.

A listener that does not read is ended, with its reason, rather than let to hold the others up or to fill
memory.
"""

import asyncio
from collections.abc import AsyncIterator

from a2a.types import StreamResponse

from kars_a2a_gateway.errors import A2AError, Kind

_MAX_QUEUED = 256


class Subscription:
    """One listener; iterate it once."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[StreamResponse | A2AError | None] = asyncio.Queue(_MAX_QUEUED + 1)
        self.ended = False

    def put(self, item: StreamResponse | A2AError | None) -> None:
        """Hand on an event, an error, or the end (None)."""
        if self.ended:
            return
        if not isinstance(item, StreamResponse):
            self.ended = True
        elif self._queue.qsize() >= _MAX_QUEUED:
            self.ended = True
            while not self._queue.empty():  # what is left would be a stream with a hole in it
                self._queue.get_nowait()
            item = A2AError(Kind.QUOTA_EXCEEDED, "the stream was read too slowly; subscribe again")
        self._queue.put_nowait(item)

    async def events(self, longest_s: float) -> AsyncIterator[StreamResponse]:
        """Yield events until the end, or until the stream has lived long enough (the task goes on).

        Raises:
            A2AError: the stream ends with an error.
        """
        end_at = asyncio.get_running_loop().time() + longest_s
        while True:
            try:
                # Around each wait and not around all: the steps of a generator may run in different tasks.
                async with asyncio.timeout_at(end_at):
                    item = await self._queue.get()
            except TimeoutError:
                return
            if item is None:
                return
            if isinstance(item, A2AError):
                raise item
            yield item
