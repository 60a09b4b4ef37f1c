"""What the SQLite store holds in memory of each mailbox: an index of its runs, never the whole content.

Bodies stay only while they are on their way: from acceptance until a reader that keeps up has taken them.
Everything else is read back from the file when its turn comes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kars_relay.frames import cut
from kars_relay.mailbox.base import DEDUPE_IDS, StoredRun

LIVE_BYTES = 1024 * 1024
"""How much one reader may hold in memory that it has not taken yet."""
LIVE_RUNS = 1024


@dataclass(slots=True)
class Held:
    """One run of a mailbox."""

    first_seq: int
    count: int
    size: int
    sender: str
    to: str
    expires_at_s: int
    stored_at_ms: int
    ids: bytes
    body: bytes | None = None
    segment: int = 0
    place: int = 0
    gone: bool = False
    """Acknowledged, expired or removed: its body may not be there any more."""

    @property
    def last_seq(self) -> int:
        """Sequence number of its last envelope."""
        return self.first_seq + self.count - 1


@dataclass(slots=True)
class Recent:
    """The newest ids of one (mailbox, sender): in memory as a set, and where they are kept on disk.

    While a run is stored, its row keeps its ids; when it goes, they move to a row of their own.
    """

    ids: set[bytes] = field(default_factory=set)
    order: deque[list[bytes]] = field(default_factory=deque)
    rows: deque[tuple[int, int]] = field(default_factory=deque)
    """(row id, how many ids), oldest first."""
    row_ids: int = 0
    moving: list[bytes] = field(default_factory=list)
    """Ids of runs that went, as stored, to be written with the next commit."""
    used_at_s: int = 0

    def add(self, ids: list[bytes]) -> None:
        """Remember ids; forget those beyond the promise."""
        self.ids.update(ids)
        self.order.append(ids)
        while len(self.ids) - len(self.order[0]) >= DEDUPE_IDS:
            self.ids.difference_update(self.order.popleft())

    def kept(self, row: int, count: int) -> list[int]:
        """Note a row; return the rows that are beyond the promise now."""
        self.rows.append((row, count))
        self.row_ids += count
        dropped: list[int] = []
        while self.row_ids - self.rows[0][1] >= DEDUPE_IDS:
            old, old_count = self.rows.popleft()
            self.row_ids -= old_count
            dropped.append(old)
        return dropped


def split_ids(ids: bytes) -> list[bytes]:
    """Return ids of 16 bytes."""
    return [ids[place : place + 16] for place in range(0, len(ids), 16)]


class Mailbox:
    """One mailbox's index and accounts."""

    __slots__ = (
        "acked", "envelopes", "id", "name", "next_seq", "reader", "recent", "runs", "senders", "serial",
        "size", "token",
    )  # fmt: skip

    def __init__(self, mailbox_id: int, name: str, serial: int) -> None:
        self.id = mailbox_id
        self.name = name
        self.serial = serial
        self.token = b""
        self.next_seq = 1
        self.acked = 0
        self.runs: deque[Held] = deque()
        self.envelopes = 0
        self.size = 0
        self.senders: dict[str, list[int]] = {}
        self.recent: dict[str, Recent] = {}
        self.reader: MailboxReader | None = None

    def charge(self, sender: str, envelopes: int, size: int) -> None:
        """Account for what came in."""
        self.envelopes += envelopes
        self.size += size
        share = self.senders.setdefault(sender, [0, 0])
        share[0] += envelopes
        share[1] += size

    def release(self, run: Held) -> None:
        """Account for a run that is gone."""
        run.gone = True
        self.envelopes -= run.count
        self.size -= run.size
        share = self.senders[run.sender]
        share[0] -= run.count
        share[1] -= run.size
        if share[0] <= 0:
            del self.senders[run.sender]


class MailboxReader:
    """Hands the runs of a mailbox to one connection, in order, each once."""

    def __init__(
        self,
        mailbox: Mailbox,
        wake: Callable[[], None],
        load: Callable[["MailboxReader"], None],
        now_s: Callable[[], float],
    ) -> None:
        self.mailbox = mailbox
        self.wake = wake
        self.live_bytes = 0
        self.live_runs = 0
        self.loading = False
        self.closed = False
        self._load = load
        self._now_s = now_s
        self._taken = 0
        self._offset = 0

    @property
    def caught_up(self) -> bool:
        """Whether nothing waits on disk, so that a new run may stay in memory for it."""
        runs = self.mailbox.runs
        return self._taken >= len(runs) or runs[-1].body is not None

    @property
    def next_place(self) -> int:
        """Index of the first run that was not wholly taken."""
        return self._taken

    def take(self, max_envelopes: int, max_bytes: int) -> list[StoredRun]:
        """See `Reader.take`."""
        out: list[StoredRun] = []
        runs = self.mailbox.runs
        while max_envelopes > 0 and not self.closed and self._taken < len(runs):
            run = runs[self._taken]
            if run.expires_at_s <= self._now_s():
                self._pass(run)
                continue
            if run.body is None:
                if not self.loading:
                    self.loading = True
                    self._load(self)
                break
            skip = max(self._offset, self.mailbox.acked - run.first_seq + 1, 0)
            part = _part(run, run.body, skip, max_envelopes, max_bytes)
            if out and len(part.body) > max_bytes:
                break
            out.append(part)
            max_envelopes -= part.count
            max_bytes -= len(part.body)
            if part.last_seq == run.last_seq:
                self._pass(run)
            else:
                self._offset = part.last_seq - run.first_seq + 1
                break
        return out

    def _pass(self, run: Held) -> None:
        if run.body is not None:
            self.live_bytes -= run.size
            self.live_runs -= 1
            run.body = None
        self._taken += 1
        self._offset = 0

    def keep(self, run: Held, body: bytes) -> None:
        """Hold a run's body in memory until it is taken."""
        run.body = body
        self.live_bytes += run.size
        self.live_runs += 1

    def removed(self, place: int, run: Held) -> None:
        """Follow the removal of a run at an index of the mailbox."""
        if run.body is not None:
            self.live_bytes -= run.size
            self.live_runs -= 1
            run.body = None
        if place < self._taken:
            self._taken -= 1
        elif place == self._taken:
            self._offset = 0

    def close(self) -> None:
        """See `Reader.close`."""
        if self.closed:
            return
        self.closed = True
        for run in self.mailbox.runs:
            run.body = None
        if self.mailbox.reader is self:
            self.mailbox.reader = None


def _part(run: Held, body: bytes, skip: int, max_envelopes: int, max_bytes: int) -> StoredRun:
    """Return as much of a run, after `skip` envelopes, as fits; at least one envelope."""
    if skip == 0 and run.count <= max_envelopes and run.size <= max_bytes:
        return StoredRun(run.first_seq, run.count, run.sender, run.to, body, run.stored_at_ms)
    ends = cut(body)
    start = ends[skip - 1] if skip else 0
    last = skip + 1
    while last < run.count and last - skip < max_envelopes and ends[last] - start <= max_bytes:
        last += 1
    part = body[start : ends[last - 1]]
    return StoredRun(run.first_seq + skip, last - skip, run.sender, run.to, part, run.stored_at_ms)
