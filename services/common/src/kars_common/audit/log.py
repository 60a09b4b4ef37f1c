"""The audit log of one service: append, make durable, sign, prove.

One process writes one directory (locked). `append` redacts, encodes, chains and hands the record to the
kernel before it returns, so a killed process loses nothing that was appended. A staged record waits for the
next one or the next sync; its caller waits for `durable` in any case, which is what must happen before a
result is released. Signed heads cover durable records only, so a power cut never turns an honest log into one
that contradicts its own signature. Any failure to write makes the log refuse for ever.

Not thread-safe: all methods belong to one thread (and `durable`, `run`, `close` to its event loop).
"""

import asyncio
import contextlib
import fcntl
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kars_common.audit import canonical, merkle, notes, recovery, segments
from kars_common.audit.canonical import Json
from kars_common.audit.commit import GroupCommit, Sync
from kars_common.audit.records import RecordEncoder
from kars_common.audit.redaction import Redactor
from kars_common.audit.tree import TreeFile
from kars_common.audit.writing import SegmentWriter
from kars_common.errors import ConflictError, OutOfRangeError, UnavailableError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large things may get."""

    max_segment_bytes: int = 16 * 1024 * 1024
    """A segment is closed when it has reached this size."""
    max_segment_age_s: float = 24 * 3600.0
    """A segment is closed when its first record is this old."""
    max_record_bytes: int = 64 * 1024
    """A larger record is refused."""
    max_string_chars: int = 8192
    """Longer strings in a record are cut."""
    checkpoint_interval_s: float = 5.0
    """How often `run` signs a new head."""


class AuditLog:
    """An append-only, tamper-evident log in a directory."""

    def __init__(
        self,
        directory: Path,
        *,
        origin: str,
        signer: Ed25519PrivateKey,
        limits: Limits,
        tree: TreeFile,
        state: recovery.Recovered,
        lock_fd: int,
        clock_s: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.origin = origin
        self.redactor = Redactor(max_string_chars=limits.max_string_chars)
        self.recovered_torn = state.torn
        self._signer = signer
        self._limits = limits
        self._tree = tree
        self._writer = SegmentWriter(state.segment, state.segment_bytes, state.segment_started_s)
        self._encoder = RecordEncoder(origin, self.redactor, limits.max_record_bytes)
        self._edge = state.edge
        self._prev = state.prev
        self._active_seq = state.segment.first_seq
        self._marks = state.marks
        self._lock_fd = lock_fd
        self._clock_s = clock_s
        self._failure: str | None = None
        self._closed = False
        self._durable_edge = state.edge.copy()
        self._syncing_edge = self._durable_edge
        self._grown: asyncio.Future[None] | None = None
        self._commit = GroupCommit(self._begin_sync, self._end_sync)
        self._commit.durable = state.edge.size

    @classmethod
    def open(
        cls,
        directory: Path | str,
        origin: str,
        signer: Ed25519PrivateKey,
        *,
        max_segment_bytes: int = Limits.max_segment_bytes,
        max_segment_age_s: float = Limits.max_segment_age_s,
        max_record_bytes: int = Limits.max_record_bytes,
        max_string_chars: int = Limits.max_string_chars,
        checkpoint_interval_s: float = Limits.checkpoint_interval_s,
        clock_s: Callable[[], float] = time.time,
    ) -> "AuditLog":
        """Open or create a log and hold its lock until `close`. Blocks: reads the last segment.

        A torn last line is cut off and recorded as `log.recovered`.

        Args:
            directory: Created with mode 0700 when missing.
            origin: Who writes here; names the log in every record and checkpoint.
            signer: The log's key; must be the one that signed the existing checkpoints.
            max_segment_bytes: See `Limits`.
            max_segment_age_s: See `Limits`.
            max_record_bytes: See `Limits`.
            max_string_chars: See `Limits`.
            checkpoint_interval_s: See `Limits`.
            clock_s: The wall clock, for tests.

        Raises:
            ConflictError: `audit_log_locked`, another process has it.
            FailedPreconditionError: `audit_log_damaged`, `audit_log_truncated` or `audit_key_mismatch`.
            UnavailableError: `audit_unavailable`, the directory cannot be read or written.
        """
        path = Path(directory)
        notes.check_name(origin)
        limits = Limits(
            max_segment_bytes=max_segment_bytes,
            max_segment_age_s=max_segment_age_s,
            max_record_bytes=max_record_bytes,
            max_string_chars=max_string_chars,
            checkpoint_interval_s=checkpoint_interval_s,
        )
        with contextlib.ExitStack() as undo:
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock_fd = _lock(path)
                undo.callback(os.close, lock_fd)
                tree = TreeFile(path / segments.TREE)
                undo.callback(tree.close)
                state = recovery.recover(path, tree, origin, signer.public_key())
                key_line = f"{notes.verifier_key(origin, signer.public_key())}\n"
                segments.replace_file(path / segments.KEY, key_line.encode())
                log = cls(
                    path,
                    origin=origin,
                    signer=signer,
                    limits=limits,
                    tree=tree,
                    state=state,
                    lock_fd=lock_fd,
                    clock_s=clock_s,
                )
                log._writer.sync()  # what an earlier process left in the page cache is durable from here
            except OSError as exc:
                raise UnavailableError("audit_unavailable", f"audit log cannot be opened: {exc}") from exc
            undo.pop_all()
        if state.torn is not None:
            log.append("log.recovered", state.torn)
        return log

    @property
    def size(self) -> int:
        """How many records were appended; the next one's sequence number."""
        return self._edge.size

    @property
    def durable_size(self) -> int:
        """How many records are known to be on disk."""
        return self._commit.durable

    @property
    def first_seq(self) -> int:
        """The first sequence number that was not pruned."""
        return segments.list_segments(self.directory)[0].first_seq

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that verifies this log's checkpoints."""
        return self._signer.public_key()

    @property
    def failed(self) -> bool:
        """Whether the log refuses because a write or sync failed."""
        return self._failure is not None

    def append(self, type: str, fields: Mapping[str, object], *, staged: bool = False) -> int:  # noqa: A002 - the record's own field name
        """Write one record and return its sequence number. Does not wait for the disk.

        Args:
            type: What happened, as dotted lower-case words (`call.denied`).
            fields: The record's own fields; secrets are redacted, long strings cut.
            staged: The kernel gets it with the next record or sync, not now: for a caller that goes on to
                wait for `durable`, and to whom nothing has happened until then.

        Raises:
            InvalidInputError: `audit_type_invalid`, `audit_field_reserved`, `audit_field_invalid` or
                `audit_record_too_large`; nothing was written.
            UnavailableError: `audit_unavailable`, now and for every later call.
        """
        if self._failure is not None:
            raise UnavailableError("audit_unavailable", self._failure)
        seq = self._edge.size
        now_s = self._clock_s()
        line = self._encoder.encode(type, fields, seq, self._prev, now_s)
        if self._writer.full(now_s, self._limits.max_segment_bytes, self._limits.max_segment_age_s):
            self._rotate()
        try:
            self._writer.write(line, now_s, staged=staged)
        except OSError as exc:
            raise self._fail(f"audit log cannot be written: {exc}") from exc
        if seq % recovery.MARK_EVERY == 0:
            self._marks.append((seq, self._writer.size_bytes - len(line) - 1))
        leaf = merkle.leaf_hash(line)
        completed: list[bytes] = []
        self._edge.append(leaf, completed)
        self._prev = leaf.hex()
        try:
            self._tree.extend(completed)
        except OSError as exc:
            raise self._fail(f"audit tree cannot be written: {exc}") from exc
        return seq

    def _fail(self, reason: str) -> UnavailableError:
        """Refuse from now on; returns the error to raise. The first reason stays."""
        self._failure = self._failure or reason
        return UnavailableError("audit_unavailable", self._failure)

    def _rotate(self) -> None:
        """Seal the segment: sync it, sign the head at its end, begin the next. Blocks for a few syncs."""
        following = segments.segment(self.directory, self._edge.size)
        try:
            self._writer.sync()
            self._tree.flush()
            segments.replace_file(following.edge_path, recovery.edge_text(self._edge))
            segments.replace_file(following.checkpoint_path, self._sign(self._edge))
            self._writer.turn_to(following, in_use=self._commit.busy)
            self._active_seq, self._marks = following.first_seq, []
            segments.sync_directory(self.directory)
        except OSError as exc:
            raise self._fail(f"audit segment cannot be closed: {exc}") from exc

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        """Return once the record `seq`, and all before it, are on disk. Shares one sync with other waiters.

        Args:
            seq: what `append` returned.
            patient: a millisecond more is fine if it saves a sync; for a caller that serves many at once.

        Raises:
            UnavailableError: `audit_unavailable`.
            OutOfRangeError: `audit_seq_out_of_range`, when no such record was appended.
        """
        if seq < self._commit.durable:
            return
        if seq >= self._edge.size:
            raise OutOfRangeError("audit_seq_out_of_range", f"record {seq} of {self._edge.size}")
        await self._commit.wait(seq + 1, patient=patient)

    def _begin_sync(self) -> tuple[int, Sync]:
        self._syncing_edge = self._edge.copy()
        try:
            return self._syncing_edge.size, self._writer.syncer()
        except OSError as exc:
            return self._syncing_edge.size, functools.partial(_raise, exc)

    def _end_sync(self, _position: int, error: OSError | None) -> None:
        self._writer.release()
        if error is not None:
            self._fail(f"audit log cannot be made durable: {error}")
        else:
            self._durable_edge = self._syncing_edge
        grown, self._grown = self._grown, None
        if grown is not None and not grown.done():
            grown.set_result(None)

    async def wait_durable_beyond(self, size: int) -> None:
        """Return once more than `size` records are durable, or the log has failed.

        Raises:
            UnavailableError: `audit_unavailable`.
        """
        while self.durable_size <= size:
            if self._failure is not None:
                raise UnavailableError("audit_unavailable", self._failure)
            if self._grown is None:
                self._grown = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._grown)

    def lines(self, start_seq: int = 0, end_seq: int | None = None) -> Iterator[bytes]:
        """Yield canonical records from `start_seq` up to `end_seq` (default: those appended so far).

        Raises:
            OutOfRangeError: `audit_seq_out_of_range`, when the start was pruned or is beyond the end.
            UnavailableError: `audit_unavailable`, when staged records could not be written.
        """
        end_seq = self.size if end_seq is None else min(end_seq, self.size)
        try:
            self._writer.flush()
        except OSError as exc:
            raise self._fail(f"audit log cannot be written: {exc}") from exc
        found = segments.list_segments(self.directory)
        if not found[0].first_seq <= start_seq <= self.size:
            raise OutOfRangeError(
                "audit_seq_out_of_range",
                f"records {found[0].first_seq} to {self.size} exist, asked for {start_seq}",
            )
        mark = max((mark for mark in self._marks if mark[0] <= start_seq), default=(self._active_seq, 0))
        return _lines(found, start_seq, end_seq, mark)

    def records(self, start_seq: int = 0, end_seq: int | None = None) -> Iterator[dict[str, Json]]:
        """Yield records as objects; see `lines`."""
        return map(canonical.decode, self.lines(start_seq, end_seq))

    def checkpoint(self) -> bytes:
        """Return a signed head (tlog-checkpoint) over the durable records."""
        return self._sign(self._durable_edge)

    def _sign(self, edge: merkle.CompactRange) -> bytes:
        head = notes.Checkpoint(origin=self.origin, size=edge.size, root=edge.root())
        return notes.sign_checkpoint(head, self._signer)

    def inclusion_proof(self, seq: int, tree_size: int | None = None) -> list[bytes]:
        """Return the sibling hashes that prove record `seq` in a tree of `tree_size` records.

        Args:
            seq: The record.
            tree_size: None means all durable records.

        Raises:
            OutOfRangeError: `audit_seq_out_of_range` or `audit_size_out_of_range`.
        """
        size = self._provable(self.durable_size if tree_size is None else tree_size)
        if not 0 <= seq < size:
            raise OutOfRangeError("audit_seq_out_of_range", f"record {seq} is not in a tree of {size}")
        return merkle.inclusion_proof(self._tree.read, seq, size)

    def consistency_proof(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """Return the hashes that prove that the log only grew between two sizes.

        Raises:
            OutOfRangeError: `audit_size_out_of_range`.
        """
        size = self._provable(self.durable_size if new_size is None else new_size)
        if not 0 <= old_size <= size:
            raise OutOfRangeError("audit_size_out_of_range", f"no tree of {old_size} before one of {size}")
        return merkle.consistency_proof(self._tree.read, old_size, size)

    def root_at(self, size: int) -> bytes:
        """Return the root hash of the first `size` durable records.

        Raises:
            OutOfRangeError: `audit_size_out_of_range`.
        """
        return self._tree.range(self._provable(size)).root()

    def _provable(self, size: int) -> int:
        if not 0 <= size <= self.durable_size:
            raise OutOfRangeError(
                "audit_size_out_of_range", f"{self.durable_size} records are durable, not {size}"
            )
        return size

    def store_checkpoint(self) -> bytes:
        """Sign the durable head and replace the `checkpoint` file with it. Blocks for a sync.

        Raises:
            UnavailableError: `audit_unavailable`.
        """
        return self._store(segments.CHECKPOINT, self.checkpoint())

    def store_witnessed(self, note: bytes) -> None:
        """Replace the `witnessed` file with a note that the caller has verified. Blocks for a sync.

        Raises:
            UnavailableError: `audit_unavailable`.
        """
        self._store(segments.WITNESSED, note)

    def _store(self, name: str, note: bytes) -> bytes:
        try:
            segments.replace_file(self.directory / name, note)
        except OSError as exc:
            raise self._fail(f"audit checkpoint cannot be written: {exc}") from exc
        return note

    async def prune(self, before_seq: int, archive: Callable[[Path], None] | None = None) -> int:
        """Delete closed segments that hold only records before `before_seq`; return the first seq kept.

        A `log.pruned` record says so first, durably. The newest closed segment always stays. What remains
        verifies as before: it begins with a signed head and the tree's edge at that size.

        Args:
            before_seq: Records from here on stay.
            archive: Called with each segment's path before it is deleted; an error from it ends the pruning.

        Raises:
            UnavailableError: `audit_unavailable`.
        """
        found = segments.list_segments(self.directory)
        doomed = [a for a, b in itertools.pairwise(found[:-1]) if b.first_seq <= before_seq]
        if not doomed:
            return found[0].first_seq
        first_kept = found[len(doomed)].first_seq
        await self.durable(self.append("log.pruned", {"first_seq": first_kept}))
        for old in doomed:
            if archive is not None:
                archive(old.path)
            for path in (old.path, old.edge_path, old.checkpoint_path):
                path.unlink(missing_ok=True)
        segments.sync_directory(self.directory)
        return first_kept

    async def run(self) -> None:
        """Make everything durable and sign a new head every `checkpoint_interval_s`, until cancelled.

        Raises:
            UnavailableError: `audit_unavailable`.
        """
        signed = -1
        while True:
            if self.size > self.durable_size:
                await self.durable(self.size - 1)
            if self.durable_size != signed:
                signed = self.durable_size
                self.store_checkpoint()
            await asyncio.sleep(self._limits.checkpoint_interval_s)

    async def close(self) -> None:
        """Make everything durable, sign the last head and release the lock. Idempotent.

        Raises:
            UnavailableError: `audit_unavailable`, when the last records did not reach the disk.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._failure is None:
                if self.size > self.durable_size:
                    await self.durable(self.size - 1)
                self.store_checkpoint()
        finally:
            self._fail("audit log is closed")
            await self._commit.close()
            self._release()

    def _release(self) -> None:
        self._writer.close()
        try:
            self._tree.close()
        finally:
            os.close(self._lock_fd)


def _raise(error: OSError) -> None:
    raise error


def _lock(directory: Path) -> int:
    fd = os.open(directory / segments.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConflictError("audit_log_locked", f"another process writes {directory}") from None
    except OSError:
        os.close(fd)
        raise
    return fd


def _lines(
    found: list[segments.Segment], start_seq: int, end_seq: int, mark: tuple[int, int]
) -> Iterator[bytes]:
    """Read records from the segments; `mark` is a record at or before the start, in its own segment."""
    bounds = [segment.first_seq for segment in found[1:]]
    for part, following in zip(found, [*bounds, end_seq], strict=True):
        if following <= start_seq or part.first_seq >= end_seq:
            continue
        first = max(part.first_seq, start_seq)
        wanted = min(following, end_seq) - first
        near_seq, offset = mark if part.first_seq <= mark[0] <= first else (part.first_seq, 0)
        for line in segments.read_lines(part.path, offset=offset, skip=first - near_seq):
            if wanted <= 0:
                break
            wanted -= 1
            yield line.data
