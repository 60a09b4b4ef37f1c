"""What every mailbox store promises, whatever engine is behind it.

- `append` resolves when its envelopes are durable; not before, and never for a part of a run.
- Each mailbox is read in the order of acceptance. What was read and not acknowledged is read again by the
next
  reader.
- A second id of the same sender for the same mailbox is dropped, silently: it was accepted before.
- A mailbox that is full refuses, by name; nothing that was accepted is ever dropped before its time to live.

The same tests run over all stores (`tests/test_mailbox_stores.py`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

DEDUPE_IDS = 1088
"""Ids known of each (mailbox, sender): more than twice what a client may have in flight."""


@dataclass(slots=True, kw_only=True)
class NewRun:
    """Envelopes of one sender for one mailbox, and the mailbox's bounds."""

    mailbox: str
    sender: str
    """Empty: sealed."""
    to: str
    """The final recipient; differs from `mailbox` for mail that leaves the trust domain."""
    ids: list[bytes]
    ends: list[int]
    body: bytes
    expires_at_s: int
    max_envelopes: int
    max_bytes: int
    share_percent: int


@dataclass(frozen=True, slots=True, order=True)
class Refused:
    """Envelopes of a run that were not accepted."""

    start: int
    count: int
    reason: int
    """A kars.mesh.v1.RefusalReason."""
    retry_after_ms: int = 0


@dataclass(slots=True)
class StoredRun:
    """Envelopes to deliver, with consecutive sequence numbers from `first_seq` on."""

    first_seq: int
    count: int
    sender: str
    to: str
    body: bytes
    stored_at_ms: int

    @property
    def last_seq(self) -> int:
        """Sequence number of the last envelope."""
        return self.first_seq + self.count - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxUsage:
    """What one mailbox holds."""

    peer: str
    envelopes: int
    size_bytes: int


@dataclass(slots=True)
class Totals:
    """What a store holds and did since start."""

    envelopes: int = 0
    size_bytes: int = 0
    accepted: int = 0
    duplicates: int = 0
    acked: int = 0
    expired: int = 0


class Reader(Protocol):
    """Reads one mailbox for one connection, from the first envelope that is not acknowledged."""

    def take(self, max_envelopes: int, max_bytes: int) -> list[StoredRun]:
        """Return what can be delivered now, in order; never waits.

        An empty answer means: nothing yet; the reader's `wake` is called when that may have changed. One
        envelope larger than `max_bytes` is returned alone.
        """

    def close(self) -> None:
        """Stop reading. Idempotent."""


class MailboxStore(Protocol):
    """All mailboxes of a relay."""

    kind: str
    totals: Totals

    async def open(self) -> None:
        """Make ready; recovers what was durable."""

    async def close(self) -> None:
        """Make what is under way durable, and close."""

    async def run(self) -> None:
        """Do the store's own upkeep for ever: expire, trim.

        Raises:
            UnavailableError: `store_unavailable`; what happened to unfinished appends is unknown.
        """

    async def ensure(self, peer: str, serial: int) -> int:
        """Create a mailbox if there is none; return the highest statement serial ever given for it."""

    async def knows(self, peer: str) -> bool:
        """Tell whether there is such a mailbox."""

    async def room(self) -> None:
        """Wait until appending is reasonable (bounded memory)."""

    def append(self, runs: Sequence[NewRun]) -> "asyncio.Future[list[list[Refused]]]":
        """Accept runs; resolves, with the refusals of each, when the rest is durable.

        Appends are durable in the order of these calls. Fails with UnavailableError `store_unavailable`.
        """

    async def reader(
        self, peer: str, wake: Callable[[], None], replaced: Callable[[], None] = lambda: None
    ) -> Reader:
        """Begin to read a mailbox; an earlier reader of it is closed.

        Args:
            peer: whose mailbox.
            wake: called when `take` may have more.
            replaced: called when another replica begins to read this mailbox.
        """

    async def acked_through(self, peer: str) -> int:
        """Return up to where a mailbox was acknowledged."""

    def ack(self, peer: str, through: int) -> None:
        """Forget everything up to a sequence number. Becomes durable soon; a crash may redeliver."""

    async def remove(self, peer: str) -> None:
        """Drop a mailbox with all that it holds."""

    async def set_token(self, peer: str, token_sha256: bytes) -> None:
        """Replace the hash of the token that sealed senders must show; empty: none may write."""

    async def token(self, peer: str) -> bytes:
        """Return that hash; empty for none and for mailboxes that do not exist."""

    async def usage(self, after: str, limit: int) -> list[MailboxUsage]:
        """Return mailboxes in order of name, after a name."""
