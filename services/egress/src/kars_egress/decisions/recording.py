"""Takes decisions from the spool to the audit log, the tables and whoever watches.

Order: append, wait for the disk, then keep the place. What cannot be parsed is recorded as such: a line that
vanishes would be a hole that an attacker can write through.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kars_common.audit import AuditLog
from kars_common.errors import InvalidInputError, ResourceExhaustedError

from kars_egress.decisions import lines
from kars_egress.decisions.lines import Decision
from kars_egress.decisions.spool import Spool
from kars_egress.decisions.targets import Targets

_LOG = logging.getLogger(__name__)
_BATCH = 500
_IDLE_S = 0.1
MAX_WATCH_BACKLOG = 1024
MAX_WATCHERS = 64


class Watcher:
    """A bounded view of what is decided from now on; the oldest give way, and are counted."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Decision] = asyncio.Queue(MAX_WATCH_BACKLOG)
        self._missed = 0

    def offer(self, decision: Decision) -> None:
        """Add one; never blocks."""
        if self._queue.full():
            self._queue.get_nowait()
            self._missed += 1
        self._queue.put_nowait(decision)

    async def next(self) -> tuple[Decision, int]:
        """Wait for one; returns it and how many were missed before it."""
        decision = await self._queue.get()
        missed, self._missed = self._missed, 0
        return decision, missed


class DecisionRecorder:
    """The one reader of the spool."""

    def __init__(self, spool: Spool, audit: AuditLog, reopen: Callable[[], None]) -> None:
        """Build it; `run` reads.

        Args:
            spool: Envoy's log.
            audit: where decisions are recorded.
            reopen: makes Envoy open a new log file.
        """
        self._spool = spool
        self._audit = audit
        self._reopen = reopen
        self._watchers: set[Watcher] = set()
        self.learned = Targets()
        self.blocked = Targets()

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        """Watch for the length of a block."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise ResourceExhaustedError("too_many_watchers", f"at most {MAX_WATCHERS} watch at once")
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    async def run(self) -> None:
        """Read for ever; ends only when the audit log refuses."""
        while True:
            if await self.read_once() == 0:
                await asyncio.sleep(_IDLE_S)
            self._spool.rotate_if_large(self._reopen)

    async def read_once(self) -> int:
        """Record what is new; returns how many lines there were."""
        count, seq = 0, -1
        for line in self._spool.read():
            seq = self._record(line)
            count += 1
            if count % _BATCH == 0:
                await asyncio.sleep(0)  # others have their turn
        if seq >= 0:
            await self._audit.durable(seq)
        self._spool.commit()
        return count

    def _record(self, line: bytes) -> int:
        try:
            decision = lines.parse(line)
        except InvalidInputError as error:
            _LOG.warning("a log line is not understood", extra={"why": error.message})
            return self._audit.append("egress.unreadable", {"bytes": len(line), "why": error.message})
        self._note(decision)
        kind = "egress.allowed" if decision.allowed else "egress.denied"
        return self._audit.append(
            kind if decision.kind == "request" else _tunnel(decision), decision.record()
        )

    def _note(self, decision: Decision) -> None:
        place = (decision.sandbox, decision.host, decision.port, decision.reason, decision.time_s)
        if not decision.allowed:
            self.blocked.note(*place)
        elif decision.reason == "learning":
            self.learned.note(*place)
        for watcher in self._watchers:
            watcher.offer(decision)


def _tunnel(decision: Decision) -> str:
    return "egress.tunnel.closed" if decision.allowed else "egress.tunnel.denied"
