"""Mailboxes in one SQLite file with bodies beside it: the default store, for one replica.

The event loop decides (duplicates, bounds, sequence numbers) and gathers; one thread commits. Whatever was
gathered while a commit ran goes into the next one, so a busy relay shares each sync among many envelopes
and an idle one waits for none. Acknowledgements ride along and force no sync of their own.

After a failed commit the store refuses for ever: what the disk holds is then a question for the next start.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kars.mesh.v1 import relay_pb2
from kars_common.errors import UnavailableError

from kars_relay.mailbox import schema
from kars_relay.mailbox.base import MailboxUsage, NewRun, Reader, Refused, Totals
from kars_relay.mailbox.bodies import BodyFiles
from kars_relay.mailbox.memory import LIVE_BYTES, LIVE_RUNS, Held, Mailbox, MailboxReader, Recent, split_ids

_LOG = logging.getLogger(__name__)
_MAX_GATHERED_BYTES = 64 * 1024 * 1024
_ACK_DELAY_S = 0.02
_LOAD_BYTES = 1024 * 1024
_RECENT_IDLE_S = 24 * 3600
_SWEEP_SLICE = 2000
_SPARSE = 0.25
"""A segment of which less than this share is needed is copied and removed."""

_INSERT_RUNS = "INSERT INTO runs VALUES {}"
_INSERT_RECENT = "INSERT INTO recent VALUES {}"
_SET_PLACES = "INSERT OR REPLACE INTO places VALUES {}"
_MOVE_RUNS = "UPDATE runs SET segment = column2, place = column3 FROM (VALUES {}) WHERE key = column1"
_DELETE_RUNS = "DELETE FROM runs WHERE key IN (VALUES {})"
_DELETE_RECENT = "DELETE FROM recent WHERE id IN (VALUES {})"

Outcome = list[list[Refused]]


@dataclass(slots=True)
class _Batch:
    """What the next commit writes."""

    recent: list[tuple[int, int, str, bytes, int]] = field(default_factory=list)
    moving: list[tuple[Mailbox, str, Recent]] = field(default_factory=list)
    progress: dict[int, Mailbox] = field(default_factory=dict)
    """Mailboxes that were acknowledged further, or lost what expired."""
    dropped_runs: list[tuple[int]] = field(default_factory=list)
    dropped_recent: list[tuple[int]] = field(default_factory=list)
    statements: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)
    held: list[tuple[Mailbox, Held, bytes]] = field(default_factory=list)
    moved: list[tuple[Mailbox, Held, bytes]] = field(default_factory=list)
    """Runs whose bodies are copied out of a segment that is nearly dead."""
    released: list[Held] = field(default_factory=list)
    """Runs whose rows this commit deletes: their segments may go after it, and not before."""
    segment: int = 0
    places: list[int] = field(default_factory=list)
    """Where the bodies of `held`, then of `moved`, went."""
    waiting: list[tuple["asyncio.Future[Outcome]", Outcome]] = field(default_factory=list)
    done: list["asyncio.Future[None]"] = field(default_factory=list)
    size: int = 0


class SqliteMailboxes:
    """See `MailboxStore`. All methods belong to one event loop."""

    kind = "sqlite"

    def __init__(
        self, path: Path, *, sweep_s: float = 30.0, clock_s: Callable[[], float] = time.time
    ) -> None:
        self.totals = Totals()
        self._path = path
        self._sweep_s = sweep_s
        self._clock_s = clock_s
        self._mailboxes: dict[str, Mailbox] = {}
        self._bodies = BodyFiles(path.with_suffix(".bodies"))
        self._batch = _Batch()
        self._committing = False
        self._scheduled = False
        self._ack_timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._failed: asyncio.Future[None] | None = None
        self._next_mailbox = 1
        self._next_recent = 1
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="mailbox-commit")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="mailbox-load")

    # --- life ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `MailboxStore`.

        Raises:
            UnavailableError: `store_unavailable`, the file cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        try:
            self._db = await self._loop.run_in_executor(self._writer, schema.connect, self._path)
            await self._loop.run_in_executor(self._writer, self._recover)
        except (sqlite3.Error, OSError) as exc:
            raise UnavailableError("store_unavailable", f"cannot use {self._path}: {exc}") from exc

    async def close(self) -> None:
        """See `MailboxStore`."""
        if self._failed is not None and not self._failed.done():
            await self.flush()
            self._failed.cancel()
        elif self._failed is not None and not self._failed.cancelled():
            self._failed.exception()  # told by `run`; closing says nothing new
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        self._loader.shutdown(wait=True)
        await self._loop.run_in_executor(self._writer, self._db.close)
        self._writer.shutdown(wait=True)
        self._bodies.close()

    async def run(self) -> None:
        """See `MailboxStore`."""
        assert self._failed is not None
        failed = asyncio.shield(self._failed)
        while True:
            done, _ = await asyncio.wait({failed}, timeout=self._sweep_s)
            if done:
                failed.result()
            await self.sweep()

    async def flush(self) -> None:
        """Wait until everything so far, acknowledgements included, is durable."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._batch.done.append(waiter)
        self._schedule()
        await waiter

    # --- mailboxes ----------------------------------------------------------------------------------------

    async def ensure(self, peer: str, serial: int) -> int:
        """See `MailboxStore`."""
        mailbox = self._mailboxes.get(peer)
        if mailbox is None:
            mailbox = Mailbox(self._next_mailbox, peer, serial)
            self._next_mailbox += 1
            self._mailboxes[peer] = mailbox
            self._execute(
                "INSERT INTO mailboxes (id, name, serial) VALUES (?, ?, ?)", (mailbox.id, peer, serial)
            )
            await self.flush()
        elif serial > mailbox.serial:
            mailbox.serial = serial
            self._execute("UPDATE mailboxes SET serial = ? WHERE id = ?", (serial, mailbox.id))
            await self.flush()
        return mailbox.serial

    async def knows(self, peer: str) -> bool:
        """See `MailboxStore`."""
        return peer in self._mailboxes

    async def remove(self, peer: str) -> None:
        """See `MailboxStore`."""
        mailbox = self._mailboxes.pop(peer, None)
        if mailbox is None:
            return
        for run in mailbox.runs:
            self.totals.envelopes -= run.count
            self.totals.size_bytes -= run.size
        await self.flush()  # nothing of it is under way after this
        if mailbox.reader is not None:
            mailbox.reader.close()
        for run in mailbox.runs:
            run.gone = True
        self._batch.released += mailbox.runs
        low, high = schema.key(mailbox.id, 0), schema.key(mailbox.id, schema.MAX_SEQ)
        self._execute("DELETE FROM runs WHERE key BETWEEN ? AND ?", (low, high))
        self._execute("DELETE FROM recent WHERE mailbox = ?", (mailbox.id,))
        self._execute("DELETE FROM places WHERE mailbox = ?", (mailbox.id,))
        self._execute("DELETE FROM mailboxes WHERE id = ?", (mailbox.id,))
        await self.flush()

    async def set_token(self, peer: str, token_sha256: bytes) -> None:
        """See `MailboxStore`."""
        mailbox = self._mailboxes[peer]
        if mailbox.token != token_sha256:
            mailbox.token = token_sha256
            self._execute("UPDATE mailboxes SET token = ? WHERE id = ?", (token_sha256, mailbox.id))
            await self.flush()

    async def token(self, peer: str) -> bytes:
        """See `MailboxStore`."""
        mailbox = self._mailboxes.get(peer)
        return mailbox.token if mailbox is not None else b""

    async def usage(self, after: str, limit: int) -> list[MailboxUsage]:
        """See `MailboxStore`."""
        names = sorted(name for name in self._mailboxes if name > after)[:limit]
        found = (self._mailboxes[name] for name in names)
        return [MailboxUsage(peer=box.name, envelopes=box.envelopes, size_bytes=box.size) for box in found]

    # --- accepting ----------------------------------------------------------------------------------------

    async def room(self) -> None:
        """See `MailboxStore`."""
        await self._room.wait()

    def append(self, runs: Sequence[NewRun]) -> "asyncio.Future[Outcome]":
        """See `MailboxStore`."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        assert self._failed is not None
        if self._failed.done():
            future.set_exception(UnavailableError("store_unavailable", "the mailbox store failed"))
            return future
        now_s = self._clock_s()
        self._batch.waiting.append((future, [self._accept(run, now_s) for run in runs]))
        self._schedule()
        return future

    def _accept(self, run: NewRun, now_s: float) -> list[Refused]:
        mailbox = self._mailboxes.get(run.mailbox)
        if mailbox is None:  # removed since the sender's route was decided
            return [Refused(0, len(run.ids), relay_pb2.REFUSAL_REASON_RECIPIENT_UNKNOWN)]
        recent = mailbox.recent.get(run.sender)
        if recent is None:
            recent = mailbox.recent[run.sender] = Recent()
        recent.used_at_s = int(now_s)
        ids, ends, body = run.ids, run.ends, run.body
        if len(ids) > 1 or ids[0] in recent.ids:
            fresh = _fresh(recent, ids)
            if fresh is not None:
                self.totals.duplicates += len(ids) - len(fresh)
                if not fresh:
                    return []
                return self._accept_some(mailbox, recent, run, fresh, now_s)
        fits, reason = _fits(mailbox, run, len(ids), ends)
        if fits < len(ids):
            refused = [Refused(fits, len(ids) - fits, reason)]
            if fits:
                self._hold(mailbox, recent, run, ids=ids[:fits], body=body[: ends[fits - 1]], now_s=now_s)
            return refused
        self._hold(mailbox, recent, run, ids=ids, body=body, now_s=now_s)
        return []

    def _accept_some(
        self, mailbox: Mailbox, recent: Recent, run: NewRun, fresh: list[int], now_s: float
    ) -> list[Refused]:
        """Accept the envelopes of a run that are no duplicates."""
        starts = [0, *run.ends]
        pieces = [run.body[starts[i] : run.ends[i]] for i in fresh]
        ends: list[int] = []
        for piece in pieces:
            ends.append((ends[-1] if ends else 0) + len(piece))
        fits, reason = _fits(mailbox, run, len(fresh), ends)
        if fits:
            ids = [run.ids[i] for i in fresh[:fits]]
            self._hold(mailbox, recent, run, ids=ids, body=b"".join(pieces[:fits]), now_s=now_s)
        return [Refused(i, 1, reason) for i in fresh[fits:]]

    def _hold(
        self, mailbox: Mailbox, recent: Recent, run: NewRun, *, ids: list[bytes], body: bytes, now_s: float
    ) -> None:
        count, size = len(ids), len(body)
        held = Held(
            mailbox.next_seq,
            count,
            size,
            run.sender,
            run.to,
            run.expires_at_s,
            int(now_s * 1000),
            b"".join(ids),
        )
        mailbox.next_seq += count
        mailbox.charge(run.sender, count, size)
        batch = self._batch
        recent.add(ids)
        batch.held.append((mailbox, held, body))
        batch.size += size
        if batch.size > _MAX_GATHERED_BYTES:
            self._room.clear()

    # --- delivering ---------------------------------------------------------------------------------------

    async def reader(
        self, peer: str, wake: Callable[[], None], replaced: Callable[[], None] = lambda: None
    ) -> Reader:
        """See `MailboxStore`; there is no other replica."""
        del replaced
        mailbox = self._mailboxes[peer]
        if mailbox.reader is not None:
            mailbox.reader.close()
        mailbox.reader = MailboxReader(mailbox, wake, self._start_load, self._clock_s)
        return mailbox.reader

    async def acked_through(self, peer: str) -> int:
        """See `MailboxStore`."""
        return self._mailboxes[peer].acked

    def ack(self, peer: str, through: int) -> None:
        """See `MailboxStore`."""
        mailbox = self._mailboxes.get(peer)
        if mailbox is None or through <= mailbox.acked:
            return
        batch = self._batch
        batch.progress[mailbox.id] = mailbox
        mailbox.acked = through
        runs, totals = mailbox.runs, self.totals
        while runs and runs[0].last_seq <= through:
            run = runs.popleft()
            mailbox.release(run)
            totals.envelopes -= run.count
            totals.size_bytes -= run.size
            totals.acked += run.count
            batch.dropped_runs.append((schema.key(mailbox.id, run.first_seq),))
            batch.released.append(run)
            self._move_ids(mailbox, run)
            if mailbox.reader is not None:
                mailbox.reader.removed(0, run)
        if self._ack_timer is None and not self._scheduled and not self._committing:
            self._ack_timer = self._loop.call_later(_ACK_DELAY_S, self._schedule)

    def _move_ids(self, mailbox: Mailbox, run: Held) -> None:
        """Keep the ids of a run that goes: a late duplicate of it is one still."""
        recent = mailbox.recent.get(run.sender)
        if recent is None:
            return
        if not recent.moving:
            self._batch.moving.append((mailbox, run.sender, recent))
        recent.moving.append(run.ids)

    def _start_load(self, reader: MailboxReader) -> None:
        """Read bodies back from the file for a reader that has come to them."""
        wanted: list[Held] = []
        size = 0
        runs = reader.mailbox.runs
        for place in range(reader.next_place, len(runs)):
            run = runs[place]
            if run.body is None:
                if wanted and size + run.size > _LOAD_BYTES:
                    break
                wanted.append(run)
                size += run.size
            if len(wanted) >= 256:
                break
        where = [(run.segment, run.place, run.size) for run in wanted]
        loading = self._loop.run_in_executor(self._loader, self._load, where)
        loading.add_done_callback(lambda done: self._loaded(reader, wanted, where, done))

    def _load(self, where: list[tuple[int, int, int]]) -> list[bytes]:
        return [self._bodies.read(*place) for place in where]

    def _loaded(
        self,
        reader: MailboxReader,
        wanted: list[Held],
        where: list[tuple[int, int, int]],
        done: "asyncio.Future[list[bytes]]",
    ) -> None:
        reader.loading = False
        if done.cancelled() or reader.closed:
            return
        error = done.exception()
        if error is not None:
            # A segment may go while it is read, with runs that were acknowledged or copied meanwhile.
            held = zip(wanted, where, strict=True)
            if all(not run.gone and run.segment == place[0] for run, place in held):
                self._fail(error)
                return
        else:
            for run, body in zip(wanted, done.result(), strict=True):
                if run.body is None and not run.gone:
                    reader.keep(run, body)
        reader.wake()

    # --- upkeep -------------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Drop what is past its time to live, and ids of pairs that were silent for a day."""
        now_s = self._clock_s()
        expired = looked_at = 0
        for mailbox in list(self._mailboxes.values()):
            expired += self._expire(mailbox, now_s)
            self._forget_idle(mailbox, now_s)
            looked_at += 1 + len(mailbox.runs)
            if looked_at >= _SWEEP_SLICE:
                looked_at = 0
                await asyncio.sleep(0)
        self.totals.expired += expired
        if expired or self._batch.dropped_recent:
            await self.flush()
        await self._copy_sparse()
        return expired

    async def _copy_sparse(self) -> None:
        """Copy what is still needed out of a segment that is nearly dead, so that the segment can go."""
        number = self._bodies.sparse(_SPARSE)
        if number is None:
            return
        found = [(box, run) for box in self._mailboxes.values() for run in box.runs if run.segment == number]
        where = [(run.segment, run.place, run.size) for _, run in found]
        bodies = await self._loop.run_in_executor(self._loader, self._load, where)
        self._batch.moved += [
            (box, run, body) for (box, run), body in zip(found, bodies, strict=True) if not run.gone
        ]
        await self.flush()

    def _place_moved(self, batch: _Batch) -> None:
        for (_, run, _), place in zip(batch.moved, batch.places[len(batch.held) :], strict=True):
            if not run.gone:
                self._bodies.release(run.segment, run.size)
                run.segment, run.place = batch.segment, place
                self._bodies.keep(run.segment, run.size)

    def _expire(self, mailbox: Mailbox, now_s: float) -> int:
        if not any(run.expires_at_s <= now_s for run in mailbox.runs):
            return 0
        expired = 0
        place = 0
        for run in list(mailbox.runs):
            if run.expires_at_s > now_s:
                place += 1
                continue
            del mailbox.runs[place]
            mailbox.release(run)
            self.totals.envelopes -= run.count
            self.totals.size_bytes -= run.size
            expired += run.count
            self._batch.dropped_runs.append((schema.key(mailbox.id, run.first_seq),))
            self._batch.released.append(run)
            self._move_ids(mailbox, run)
            if mailbox.reader is not None:
                mailbox.reader.removed(place, run)
        # What expired unread must not lend its numbers to what comes after a restart.
        self._batch.progress[mailbox.id] = mailbox
        return expired

    def _forget_idle(self, mailbox: Mailbox, now_s: float) -> None:
        idle = [name for name, recent in mailbox.recent.items() if recent.used_at_s < now_s - _RECENT_IDLE_S]
        for name in idle:
            self._batch.dropped_recent += [(row,) for row, _ in mailbox.recent.pop(name).rows]

    # --- committing ---------------------------------------------------------------------------------------

    def _execute(self, sql: str, values: tuple[object, ...]) -> None:
        self._batch.statements.append((sql, values))

    def _schedule(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if not self._committing and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._commit)  # whatever else is ready in this turn joins

    def _commit(self) -> None:
        self._scheduled = False
        self._keep_moved()
        batch, self._batch = self._batch, _Batch()
        self._committing = True
        places = [(box.id, box.acked, box.next_seq) for box in batch.progress.values()]
        self._writer.submit(self._commit_in_thread, batch, places)

    def _keep_moved(self) -> None:
        batch = self._batch
        now_s = int(self._clock_s())
        for mailbox, sender, recent in batch.moving:
            ids = b"".join(recent.moving)
            recent.moving.clear()
            row = self._next_recent
            self._next_recent += 1
            batch.recent.append((row, mailbox.id, sender, ids, now_s))
            batch.dropped_recent += [(old,) for old in recent.kept(row, len(ids) // 16)]

    def _commit_in_thread(self, batch: _Batch, places: list[tuple[int, int, int]]) -> None:
        error: BaseException | None = None
        try:
            bodies = [body for _, _, body in (*batch.held, *batch.moved)]
            if bodies:
                batch.segment, batch.places = self._bodies.append(bodies)
                self._bodies.sync()
            self._write(batch, places)
        except (sqlite3.Error, OSError) as exc:
            error = exc
        self._loop.call_soon_threadsafe(self._committed, batch, error)

    def _write(self, batch: _Batch, places: list[tuple[int, int, int]]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in batch.statements:
                db.execute(sql, values)
            schema.write_rows(db, _INSERT_RUNS, _rows(batch))
            schema.write_rows(db, _MOVE_RUNS, _moves(batch))
            schema.write_rows(db, _INSERT_RECENT, batch.recent)
            schema.write_rows(db, _SET_PLACES, places)
            schema.write_rows(db, _DELETE_RUNS, batch.dropped_runs)
            schema.write_rows(db, _DELETE_RECENT, batch.dropped_recent)
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _committed(self, batch: _Batch, error: BaseException | None) -> None:
        self._committing = False
        if error is not None:
            self._fail(error, batch)
            return
        self._bodies.grown(batch.segment, sum(len(body) for _, _, body in (*batch.held, *batch.moved)))
        self._place_moved(batch)
        woken = self._place_held(batch)
        for run in batch.released:
            self._bodies.release(run.segment, run.size)
        if batch.released or batch.moved:
            self._bodies.remove_dead()
        for future, outcome in batch.waiting:
            if not future.done():
                future.set_result(outcome)
        for waiter in batch.done:
            if not waiter.done():
                waiter.set_result(None)
        for reader in woken:
            reader.wake()
        self._room.set()
        if self._pending(self._batch):
            self._schedule()

    def _place_held(self, batch: _Batch) -> Iterable[MailboxReader]:
        """Enter what is durable now into its mailboxes; return the readers that wait for it."""
        woken: dict[int, MailboxReader] = {}
        for (mailbox, held, body), place in zip(batch.held, batch.places, strict=False):  # `moved` come after
            reader = mailbox.reader
            keep = reader is not None and reader.caught_up
            held.segment, held.place = batch.segment, place
            self._bodies.keep(batch.segment, held.size)
            mailbox.runs.append(held)
            if reader is not None:
                if keep and reader.live_bytes < LIVE_BYTES and reader.live_runs < LIVE_RUNS:
                    reader.keep(held, body)
                woken[mailbox.id] = reader
            if self._mailboxes.get(mailbox.name) is mailbox:  # else it is being removed
                self.totals.envelopes += held.count
                self.totals.size_bytes += held.size
                self.totals.accepted += held.count
        return woken.values()

    @staticmethod
    def _pending(batch: _Batch) -> bool:
        parts: Iterable[object] = (
            batch.waiting, batch.progress, batch.done, batch.statements, batch.dropped_runs,
            batch.dropped_recent, batch.moved,
        )  # fmt: skip
        return any(parts)

    def _fail(self, error: BaseException, batch: _Batch | None = None) -> None:
        _LOG.error("mailbox store failed", extra={"error": str(error)[:200]})
        failure = UnavailableError("store_unavailable", "the mailbox store failed; see the relay's log")
        for unfinished in (batch or _Batch(), self._batch):
            for future, _ in unfinished.waiting:
                if not future.done():
                    future.set_exception(failure)
            for waiter in unfinished.done:
                if not waiter.done():
                    waiter.set_exception(failure)
        self._batch = _Batch()
        self._room.set()
        assert self._failed is not None
        if not self._failed.done():
            self._failed.set_exception(failure)

    # --- recovery -----------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Read the index back; bodies stay in the file."""
        db = self._db
        by_id: dict[int, Mailbox] = {}
        for box_id, name, next_seq, acked, serial, token in db.execute(
            "SELECT id, name, coalesce(next_seq, 1), coalesce(acked, 0), serial, token"
            " FROM mailboxes LEFT JOIN places ON mailbox = id"
        ):
            mailbox = by_id[box_id] = self._mailboxes[name] = Mailbox(box_id, name, serial)
            mailbox.next_seq, mailbox.acked, mailbox.token = max(next_seq, acked + 1), acked, token
        self._recover_recent(by_id)
        for row_key, count, size, sender, to, expires_at, stored_at_ms, ids, segment, place in db.execute(
            "SELECT key, count, size, sender, recipient, expires_at, stored_at_ms, ids, segment, place"
            " FROM runs ORDER BY key"
        ):
            mailbox = by_id[row_key >> schema.SEQ_BITS]
            run = Held(row_key & schema.MAX_SEQ, count, size, sender, to, expires_at, stored_at_ms, ids)
            run.segment, run.place = segment, place
            mailbox.recent.setdefault(sender, Recent(used_at_s=stored_at_ms // 1000)).add(split_ids(ids))
            mailbox.next_seq = max(mailbox.next_seq, run.last_seq + 1)
            mailbox.runs.append(run)
            mailbox.charge(sender, count, size)
            self.totals.envelopes += count
            self.totals.size_bytes += size
        self._next_mailbox = max(by_id, default=0) + 1
        rows = ((run.segment, run.place, run.size) for box in by_id.values() for run in box.runs)
        if lacking := self._bodies.recover(rows):
            raise OSError(f"segments {lacking} are missing or short; restore the backup")

    def _recover_recent(self, by_id: dict[int, Mailbox]) -> None:
        for row, box_id, sender, ids, at in self._db.execute(
            "SELECT id, mailbox, sender, ids, at FROM recent ORDER BY id"
        ):
            recent = by_id[box_id].recent.setdefault(sender, Recent())
            recent.add(split_ids(ids))
            recent.kept(row, len(ids) // 16)
            recent.used_at_s = max(recent.used_at_s, at)
            self._next_recent = row + 1


def _rows(batch: _Batch) -> list[tuple[object, ...]]:
    """Return the rows of a batch's runs, with where their bodies went."""
    return [
        (
            schema.key(box.id, run.first_seq),
            run.count,
            run.size,
            run.sender,
            run.to,
            run.expires_at_s,
            run.stored_at_ms,
            run.ids,
            batch.segment,
            place,
        )
        for (box, run, _), place in zip(batch.held, batch.places, strict=False)  # `moved` come after
    ]


def _moves(batch: _Batch) -> list[tuple[int, int, int]]:
    places = batch.places[len(batch.held) :]
    return [
        (schema.key(box.id, run.first_seq), batch.segment, place)
        for (box, run, _), place in zip(batch.moved, places, strict=True)
    ]


def _fresh(recent: Recent, ids: list[bytes]) -> list[int] | None:
    """Return which of the ids are new; None when all are."""
    known = recent.ids
    if known.isdisjoint(ids) and len(set(ids)) == len(ids):
        return None
    fresh: list[int] = []
    seen: set[bytes] = set()
    for place, message_id in enumerate(ids):
        if message_id not in known and message_id not in seen:
            seen.add(message_id)
            fresh.append(place)
    return fresh


def _fits(mailbox: Mailbox, run: NewRun, count: int, ends: list[int]) -> tuple[int, int]:
    """Return how many of a run's envelopes fit, from the front, and why the next does not."""
    held = mailbox.senders.get(run.sender, (0, 0))
    share = run.share_percent
    room = run.max_envelopes - mailbox.envelopes
    own_room = run.max_envelopes * share // 100 - held[0]
    room_bytes = run.max_bytes - mailbox.size
    own_room_bytes = run.max_bytes * share // 100 - held[1]
    if count <= room and count <= own_room and ends[-1] <= room_bytes and ends[-1] <= own_room_bytes:
        return count, 0
    for place in range(count):
        if place >= room or ends[place] > room_bytes:
            return place, relay_pb2.REFUSAL_REASON_RECIPIENT_FULL
        if place >= own_room or ends[place] > own_room_bytes:
            return place, relay_pb2.REFUSAL_REASON_SENDER_SHARE
    return count, 0
