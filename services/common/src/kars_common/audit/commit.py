"""Group commit: one fdatasync for everybody who waits.

While a sync runs, those who come later gather for the next one; nobody waits for more than two. Knows
positions and a sync function, nothing of records. After a failure every waiter and every later caller gets
the same error: what the kernel did with the lost pages cannot be known, so a later success would prove
nothing.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kars_common.errors import UnavailableError

Sync = Callable[[], None]


class GroupCommit:
    """Makes positions durable in batches; all methods belong to one event loop."""

    def __init__(
        self, begin: Callable[[], tuple[int, Sync]], settled: Callable[[int, OSError | None], None]
    ) -> None:
        """Create one.

        Args:
            begin: Returns the position that a sync started now will cover, and the blocking sync.
            settled: Told, on the loop, the position and the error of a sync that ended.
        """
        self._begin = begin
        self._settled = settled
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="audit-sync")
        self._running: asyncio.Future[None] | None = None
        self._running_position = 0
        self._gathering: asyncio.Future[None] | None = None
        self._failure: str | None = None
        self.durable = 0

    @property
    def busy(self) -> bool:
        """Whether a sync is running now."""
        return self._running is not None

    async def wait(self, position: int) -> None:
        """Return once everything before `position` is durable.

        Cancelling a waiter leaves the sync to the others.

        Raises:
            UnavailableError: `audit_unavailable`, when a sync failed, now or ever before.
        """
        while self.durable < position:
            if self._failure is not None:
                raise UnavailableError("audit_unavailable", self._failure)
            if self._running is None:
                await asyncio.shield(self._start(asyncio.get_running_loop().create_future()))
            elif position <= self._running_position:
                await asyncio.shield(self._running)
            else:
                if self._gathering is None:
                    self._gathering = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._gathering)

    def _start(self, batch: "asyncio.Future[None]") -> "asyncio.Future[None]":
        loop = batch.get_loop()
        self._running_position, sync = self._begin()
        self._running = batch

        def work() -> None:
            error: OSError | None = None
            try:
                sync()
            except OSError as exc:
                error = exc
            loop.call_soon_threadsafe(self._finish, batch, error)

        self._executor.submit(work)
        return batch

    def _finish(self, batch: "asyncio.Future[None]", error: OSError | None) -> None:
        self._running = None
        if error is None and self._failure is None:
            self.durable = max(self.durable, self._running_position)
        else:
            self._failure = self._failure or f"audit log cannot be made durable: {error}"
        self._settled(self._running_position, error)
        if not batch.done():  # each waiter looks at `durable` and `_failure` again
            batch.set_result(None)
        if self._gathering is not None:
            batch, self._gathering = self._gathering, None
            if self._failure is None:
                self._start(batch)
            elif not batch.done():
                batch.set_result(None)

    async def close(self) -> None:
        """Wait for a running sync and end the worker thread."""
        while self._running is not None:
            await asyncio.shield(self._running)
        self._executor.shutdown(wait=True)
