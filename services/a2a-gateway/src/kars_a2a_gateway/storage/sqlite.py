"""SQLite, with group commit in a thread of its own for what must be on the disk.

What need not be on the disk is run at once, in the loop's thread, when the file is free: a transaction in
memory takes less time than handing it over.

Scripts that arrive while a commit is on its way to the disk run together in the next transaction, each in a
savepoint; one commit, and one sync if any of them needs it, then serves them all. A script that raises takes
back only its own statements.
"""

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kars_common.errors import UnavailableError

from kars_a2a_gateway.storage import schema
from kars_a2a_gateway.storage.scripts import Script, Statement

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_MAX_QUEUED = 4096
_MAX_BATCH = 256
_MAX_JOURNAL_BYTES = 16 * 1024 * 1024


class SqliteDatabase:
    """One file, one writer."""

    def __init__(self, path: Path) -> None:
        """Open the file and make the tables; blocks for that.

        Raises:
            UnavailableError: `database_unavailable`.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._journal = path.with_name(f"{path.name}-wal")
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in (
                "journal_mode=WAL",
                "synchronous=NORMAL",
                "busy_timeout=5000",
                "wal_autocheckpoint=0",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            for statement in schema.statements(schema.SQLITE):
                self._connection.execute(statement)
        except sqlite3.Error as exc:
            raise UnavailableError("database_unavailable", f"cannot open {path.name}") from exc
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queued = 0
        self._thread = threading.Thread(target=self._work, name="sqlite", daemon=True)
        self._thread.start()

    async def run(self, make: Callable[[], Script[_Result]], *, durable: bool = True) -> _Result:
        """Run one script; it is on disk when this returns, or with the system if it need not be durable."""
        if not durable and self._lock.acquire(blocking=False):
            try:
                return self._run_at_once(make())
            finally:
                self._lock.release()
        if self._queued >= _MAX_QUEUED:
            raise UnavailableError("database_unavailable", "too many transactions wait")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queued += 1
        self._jobs.put(_Job(make(), future, loop, durable=durable))
        try:
            # Shielded: a caller that goes away does not undo half of what the thread is doing.
            result: _Result = await asyncio.shield(future)
        finally:
            self._queued -= 1
        return result

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()

    def _run_at_once(self, script: Script[_Result]) -> _Result:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                result = self._drive(script)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as exc:
            raise UnavailableError("database_unavailable", "the database refuses to commit") from exc
        return result

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            last = False
            with contextlib.suppress(queue.Empty):
                while len(batch) < _MAX_BATCH:
                    more = self._jobs.get_nowait()
                    if more is None:
                        last = True
                        break
                    batch.append(more)
            with self._lock:
                self._commit(batch)
                self._checkpoint()
            if last:
                return

    def _commit(self, batch: "list[_Job]") -> None:
        done: list[Callable[[], None]] = []
        before = self._connection.total_changes
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            done = [self._attempt(job) for job in batch]
            self._connection.execute("COMMIT")
            if self._connection.total_changes != before and any(job.durable for job in batch):
                self._sync()
        except (sqlite3.Error, OSError) as exc:
            _LOG.exception("transaction failed")
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            failure = UnavailableError("database_unavailable", "the database refuses to commit")
            failure.__cause__ = exc
            done = [job.failing(failure) for job in batch]
        loops: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        for job, deliver in zip(batch, done, strict=True):
            loops.setdefault(job.loop, []).append(deliver)
        for loop, deliveries in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile; nobody waits any more
                loop.call_soon_threadsafe(_deliver, deliveries)

    def _sync(self) -> None:
        """Bring the journal to the disk, where SQLite itself was told to leave it with the system."""
        descriptor = os.open(self._journal, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _checkpoint(self) -> None:
        """Bring a long journal into the file; in this thread, because it waits for the disk."""
        with contextlib.suppress(sqlite3.Error, OSError):
            if self._journal.stat().st_size > _MAX_JOURNAL_BYTES:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _attempt(self, job: "_Job") -> Callable[[], None]:
        self._connection.execute("SAVEPOINT script")
        try:
            result = self._drive(job.script)
        except sqlite3.OperationalError:
            raise
        except Exception as exc:  # noqa: BLE001  # the seam: what a script raises is its caller's
            self._connection.execute("ROLLBACK TO script")
            self._connection.execute("RELEASE script")
            return job.failing(exc)
        self._connection.execute("RELEASE script")
        return job.ending(result)

    def _drive(self, script: Script[_Result]) -> _Result:
        statement: Statement
        try:
            statement = next(script)
            while True:
                rows = self._connection.execute(statement.sql, statement.parameters).fetchall()
                statement = script.send(rows)
        except StopIteration as end:
            result: _Result = end.value
            return result


class _Job:
    """A script and whoever waits for it."""

    __slots__ = ("durable", "future", "loop", "script")

    def __init__(
        self,
        script: Script[Any],
        future: "asyncio.Future[Any]",
        loop: asyncio.AbstractEventLoop,
        *,
        durable: bool,
    ) -> None:
        self.durable = durable
        self.script = script
        self.future = future
        self.loop = loop

    def ending(self, result: object) -> Callable[[], None]:
        return lambda: None if self.future.done() else self.future.set_result(result)

    def failing(self, error: BaseException) -> Callable[[], None]:
        return lambda: None if self.future.done() else self.future.set_exception(error)


def _deliver(deliveries: list[Callable[[], None]]) -> None:
    for deliver in deliveries:
        deliver()
