"""Envelopes that were handed to the relay and are not decided yet, on one stream.

The relay numbers envelopes by counting them; so does this. A receipt decides everything up to a number; what
was refused is named, once. Within the relay's window, and a written rule beyond it: wait.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from kars.mesh.v1 import relay_pb2
from kars_common.errors import UnavailableError

Refused = tuple[int, relay_pb2.Refusal]
"""Place of the first refused envelope in its run, from 0, and the refusal."""


@dataclass(kw_only=True, eq=False)
class Run:
    """Envelopes with consecutive numbers, submitted together."""

    first: int
    count: int
    size_bytes: int
    decided: "asyncio.Future[None]"
    refusals: list[Refused] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Number of the last envelope."""
        return self.first + self.count - 1


class InFlight:
    """One stream's numbering and window."""

    def __init__(self, max_envelopes: int, max_bytes: int) -> None:
        self._max_envelopes = max(1, max_envelopes)
        self._max_bytes = max(1, max_bytes)
        self._runs: deque[Run] = deque()
        self._next = 1
        self._envelopes = 0
        self._bytes = 0
        self._room = asyncio.Event()

    async def wait_room(self, count: int, size_bytes: int) -> None:
        """Wait until so much more fits; a run that is larger than the window goes alone."""
        while self._runs and (
            self._envelopes + count > self._max_envelopes or self._bytes + size_bytes > self._max_bytes
        ):
            self._room.clear()
            await self._room.wait()

    def add(self, count: int, size_bytes: int) -> Run:
        """Number a run that is about to be written."""
        run = Run(
            first=self._next,
            count=count,
            size_bytes=size_bytes,
            decided=asyncio.get_running_loop().create_future(),
        )
        # Whoever waited may be gone; an end that nobody looks at is no accident.
        run.decided.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._next += count
        self._envelopes += count
        self._bytes += size_bytes
        self._runs.append(run)
        return run

    def take(self, receipt: relay_pb2.Receipt) -> bool:
        """Take a receipt in; False when it speaks of what was never submitted."""
        if receipt.decided_through >= self._next or not self._assign(receipt.refusals):
            return False
        while self._runs and self._runs[0].last <= receipt.decided_through:
            run = self._runs.popleft()
            self._envelopes -= run.count
            self._bytes -= run.size_bytes
            if not run.decided.done():
                run.decided.set_result(None)
        self._room.set()
        return True

    def fail(self) -> None:
        """End every wait: the stream is gone, and nobody knows what was stored."""
        while self._runs:
            run = self._runs.popleft()
            if not run.decided.done():
                run.decided.set_exception(lost())
        self._envelopes = self._bytes = 0
        self._room.set()

    def _assign(self, refusals: Iterable[relay_pb2.Refusal]) -> bool:
        """Cut refusals at the borders of runs and put each where it belongs."""
        for refusal in refusals:
            first, end = refusal.number, refusal.number + max(1, refusal.count)
            if first < 1 or end > self._next:
                return False
            for run in self._runs:
                begin, stop = max(first, run.first), min(end, run.last + 1)
                if begin < stop:
                    cut = relay_pb2.Refusal(
                        count=stop - begin, reason=refusal.reason, retry_after_ms=refusal.retry_after_ms
                    )
                    run.refusals.append((begin - run.first, cut))
        return True


def lost() -> UnavailableError:
    """Return the error of a submission whose fate is unknown; the same ids may be submitted again."""
    return UnavailableError(
        "mesh_not_attached", "the relay is not attached; connect again, and submit the same envelopes again"
    )
