"""Mailboxes in NATS JetStream: the store when one replica is not enough.

One stream holds every mailbox: subject `mesh.mb.<mailbox>.<sender>` (hashes), one message an envelope, so
that the server itself drops duplicates (`Nats-Msg-Id`) and expires (`Nats-TTL`). An acknowledgement purges
a mailbox's subjects up to a sequence number. A reader asks the stream's leader for the next message of its
mailbox, so no state of a reader lives on a server that may be lost; whoever stored a message wakes the
reader wherever it is.

Envelopes of one sender are published one after another, each only when the one before is durable: a lost
acknowledgement then never leads to another order. What differs from the SQLite store: ids are known for ten
minutes instead of by count, and a mailbox's bound in bytes is judged by the mean size of what this replica
saw.
"""

import asyncio
import hashlib
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kars.mesh.v1 import relay_pb2
from kars_common.errors import UnavailableError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError
from nats.js.kv import KeyValue

from kars_relay.mailbox.base import MailboxUsage, NewRun, Reader, Refused, StoredRun, Totals

_LOG = logging.getLogger(__name__)
_STREAM = "KARS_MESH"
_BUCKET = "kars-mesh-mailboxes"
_TURN = "turn."
"""Prefix of keys whose revision numbers the readers of a mailbox."""
_MIN_PAYLOAD = 2 * 1024 * 1024
_DUPLICATE_WINDOW_S = 600.0
_MAX_AGE_S = 7 * 24 * 3600.0
_PUBLISH_S = 5.0
_RETRY_FOR_S = 20.0
_RETRY_AFTER_S = 0.2
_POLL_S = 2.0
_COUNT_GOOD_FOR_S = 1.0
_QUEUE = 64
_QUEUE_BYTES = 1024 * 1024
_MAX_GATHERED_BYTES = 64 * 1024 * 1024

Outcome = list[list[Refused]]


@dataclass(slots=True)
class _Counts:
    """How many messages of a mailbox the stream held at a moment, by sender, plus ours since."""

    by_sender: dict[str, int]
    at_s: float

    @property
    def total(self) -> int:
        return sum(self.by_sender.values())


@dataclass(slots=True)
class _Entry:
    """A mailbox as the bucket holds it."""

    peer: str
    serial: int
    token: bytes = b""

    def dump(self) -> bytes:
        return json.dumps({"peer": self.peer, "serial": self.serial, "token": self.token.hex()}).encode()

    @classmethod
    def load(cls, value: bytes) -> "_Entry":
        fields = json.loads(value)
        return cls(fields["peer"], fields["serial"], bytes.fromhex(fields["token"]))


@dataclass(slots=True)
class _Sizes:
    envelopes: int = 0
    size: int = 0

    @property
    def mean(self) -> float:
        return self.size / self.envelopes if self.envelopes else 0.0


class JetStreamMailboxes:
    """See `MailboxStore`. All methods belong to one event loop."""

    kind = "jetstream"

    def __init__(
        self,
        url: str,
        *,
        replicas: int = 1,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        refresh_s: float = 5.0,
        start_s: float = 15.0,
    ) -> None:
        self.totals = Totals()
        self._url = url
        self._replicas = replicas
        self._token_file = token_file
        self._ca_file = ca_file
        self._refresh_s = refresh_s
        self._start_s = start_s
        self._known: set[str] = set()
        self._counts: dict[str, _Counts] = {}
        self._sizes: dict[str, _Sizes] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathered = 0
        self._room = asyncio.Event()
        self._room.set()
        self._readers: dict[str, _JetStreamReader] = {}
        self._nc = Client()

    # --- life ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `MailboxStore`."""
        try:
            # The client tries for ever, which is right while serving; a start says what it cannot reach.
            async with asyncio.timeout(self._start_s):
                await self._nc.connect(
                    self._url.split(","),
                    token=self._token_file.read_text().strip() if self._token_file else None,
                    tls=ssl.create_default_context(cafile=str(self._ca_file)) if self._ca_file else None,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    error_cb=self._nats_error,
                    name="kars-relay",
                )
            if self._nc.max_payload < _MIN_PAYLOAD:
                raise UnavailableError(
                    "store_unavailable",
                    f"the NATS server takes {self._nc.max_payload} bytes; set max_payload to {_MIN_PAYLOAD}",
                )
            self._js: JetStreamContext = self._nc.jetstream(timeout=_PUBLISH_S)
            await self._create()
        except (NatsError, OSError, TimeoutError) as exc:
            await self._nc.close()
            message = f"cannot use JetStream at start: {type(exc).__name__}: {exc}"
            raise UnavailableError("store_unavailable", message) from exc

    async def _create(self) -> None:
        """Make stream and bucket, or find them; waits while the servers elect a leader."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._start_s
        while True:
            try:
                await self._js.add_stream(self._stream())
                self._kv: KeyValue = await self._js.create_key_value(
                    bucket=_BUCKET, history=1, replicas=self._replicas
                )
            except (NatsError, TimeoutError):
                if loop.time() > give_up:
                    raise
                await asyncio.sleep(_RETRY_AFTER_S)
            else:
                return

    def _stream(self) -> api.StreamConfig:
        return api.StreamConfig(
            name=_STREAM,
            subjects=["mesh.mb.*.*"],
            retention=api.RetentionPolicy.LIMITS,
            storage=api.StorageType.FILE,
            num_replicas=self._replicas,
            max_age=_MAX_AGE_S,
            duplicate_window=_DUPLICATE_WINDOW_S,
            allow_msg_ttl=True,
            allow_direct=True,
        )

    async def close(self) -> None:
        """See `MailboxStore`."""
        for reader in list(self._readers.values()):
            reader.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_PUBLISH_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._nc.close()

    async def run(self) -> None:
        """See `MailboxStore`; the server expires by itself."""
        while True:
            with suppress(NatsError, TimeoutError):
                state = (await self._js.stream_info(_STREAM)).state
                self.totals.envelopes, self.totals.size_bytes = state.messages, state.bytes
            await asyncio.sleep(self._refresh_s)

    async def _nats_error(self, error: Exception) -> None:
        _LOG.warning("nats connection", extra={"error": type(error).__name__})

    # --- mailboxes ----------------------------------------------------------------------------------------

    async def ensure(self, peer: str, serial: int) -> int:
        """See `MailboxStore`."""

        def change(entry: _Entry | None) -> _Entry | None:
            if entry is not None and serial <= entry.serial:
                return None
            return _Entry(peer, serial, entry.token if entry else b"")

        entry = await self._change(peer, change)
        self._known.add(peer)
        return entry.serial if entry else serial

    async def knows(self, peer: str) -> bool:
        """See `MailboxStore`."""
        if peer in self._known:
            return True
        if await self._entry(peer) is None:
            return False
        self._known.add(peer)
        return True

    async def remove(self, peer: str) -> None:
        """See `MailboxStore`."""
        self._known.discard(peer)
        self._counts.pop(peer, None)
        if (reader := self._readers.get(peer)) is not None:
            reader.close()
        async with _mapped():
            with suppress(KeyNotFoundError, NotFoundError):
                await self._kv.purge(_hash(peer))
            await self._js.purge_stream(_STREAM, subject=_mailbox_subject(peer))

    async def set_token(self, peer: str, token_sha256: bytes) -> None:
        """See `MailboxStore`."""
        await self._change(peer, lambda entry: entry and _Entry(peer, entry.serial, token_sha256))

    async def token(self, peer: str) -> bytes:
        """See `MailboxStore`."""
        entry = await self._entry(peer)
        return entry.token if entry is not None else b""

    async def usage(self, after: str, limit: int) -> list[MailboxUsage]:
        """See `MailboxStore`."""
        async with _mapped():
            keys = [key for key in await self._kv.keys() if not key.startswith(_TURN)]
            entries = [_Entry.load((await self._kv.get(key)).value or b"") for key in keys]
        names = sorted(entry.peer for entry in entries if entry.peer > after)[:limit]
        found = []
        for name in names:
            total = (await self._fresh_counts(name, 0.0)).total
            size = int(total * self._sizes.get(name, _Sizes()).mean)
            found.append(MailboxUsage(peer=name, envelopes=total, size_bytes=size))
        return found

    async def _entry(self, peer: str) -> _Entry | None:
        async with _mapped():
            try:
                return _Entry.load((await self._kv.get(_hash(peer))).value or b"")
            except KeyNotFoundError:
                return None

    async def _change(self, peer: str, change: Callable[[_Entry | None], _Entry | None]) -> _Entry | None:
        """Compare and swap an entry; return what holds afterwards."""
        key = _hash(peer)
        async with _mapped():
            while True:
                try:
                    held = await self._kv.get(key)
                    entry, revision = _Entry.load(held.value or b""), held.revision or 0
                except KeyNotFoundError:
                    entry, revision = None, 0
                wanted = change(entry)
                if wanted is None:
                    return entry
                try:
                    if revision:
                        await self._kv.update(key, wanted.dump(), revision)
                    else:
                        await self._kv.create(key, wanted.dump())
                except KeyWrongLastSequenceError:
                    continue  # another replica was quicker
                return wanted

    # --- accepting ----------------------------------------------------------------------------------------

    async def room(self) -> None:
        """See `MailboxStore`."""
        await self._room.wait()

    def append(self, runs: Sequence[NewRun]) -> "asyncio.Future[Outcome]":
        """See `MailboxStore`."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        size = sum(len(run.body) for run in runs)
        self._gathered += size
        if self._gathered > _MAX_GATHERED_BYTES:
            self._room.clear()
        task = asyncio.create_task(self._append(runs, size, future), name="publish to mailboxes")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _append(self, runs: Sequence[NewRun], size: int, future: "asyncio.Future[Outcome]") -> None:
        # Tasks begin in the order of `append`, and the lock serves in that order: a sender's order holds.
        lock = self._locks.setdefault(runs[0].sender, asyncio.Lock())
        try:
            async with lock:
                outcome = [await self._publish_run(run) for run in runs]
            if not future.done():
                future.set_result(outcome)
        except (UnavailableError, asyncio.CancelledError) as error:
            if not future.done():
                future.set_exception(UnavailableError("store_unavailable", str(error)))
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._gathered -= size
            if self._gathered <= _MAX_GATHERED_BYTES:
                self._room.set()

    async def _publish_run(self, run: NewRun) -> list[Refused]:
        if not await self.knows(run.mailbox):
            return [Refused(0, len(run.ids), relay_pb2.REFUSAL_REASON_RECIPIENT_UNKNOWN)]
        counts = await self._fresh_counts(run.mailbox, _COUNT_GOOD_FOR_S)
        sizes = self._sizes.setdefault(run.mailbox, _Sizes())
        sender = _hash(run.sender)
        start = 0
        for place, end in enumerate(run.ends):
            reason = _full(counts, sizes, sender, run)
            if reason:
                await self._wake(run.mailbox)
                return [Refused(place, len(run.ids) - place, reason)]
            if await self._publish(run, run.ids[place], run.body[start:end]):
                counts.by_sender[sender] = counts.by_sender.get(sender, 0) + 1
                sizes.envelopes, sizes.size = sizes.envelopes + 1, sizes.size + end - start
                self.totals.accepted += 1
            else:
                self.totals.duplicates += 1
            start = end
        await self._wake(run.mailbox)
        return []

    async def _publish(self, run: NewRun, message_id: bytes, body: bytes) -> bool:
        """Store one envelope; return False for a known duplicate.

        Raises:
            UnavailableError: `store_unavailable`, not within the time for retries; it may be stored or not.
        """
        unique = hashlib.sha256(f"{run.mailbox}\0{run.sender}\0".encode() + message_id).hexdigest()
        headers = {"Nats-Msg-Id": unique, "Kars-Sender": run.sender, "Kars-To": run.to}
        ttl_s = max(1, run.expires_at_s - int(time.time()))
        subject = f"mesh.mb.{_hash(run.mailbox)}.{_hash(run.sender)}"
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _RETRY_FOR_S
        while True:
            try:
                ack = await self._js.publish(
                    subject, body, timeout=_PUBLISH_S, headers=dict(headers), msg_ttl=ttl_s
                )
            except (NatsError, TimeoutError) as exc:
                # A leader is being elected, or a server is gone: the id makes another attempt harmless.
                if loop.time() > give_up:
                    raise UnavailableError("store_unavailable", f"JetStream did not store: {exc}") from exc
                await asyncio.sleep(_RETRY_AFTER_S)
                continue
            return not ack.duplicate

    async def _wake(self, mailbox: str) -> None:
        with suppress(NatsError):  # the reader looks by itself every other second
            await self._nc.publish(f"mesh.wake.{_hash(mailbox)}")

    async def _fresh_counts(self, mailbox: str, good_for_s: float) -> _Counts:
        now_s = time.monotonic()
        held = self._counts.get(mailbox)
        if held is None or now_s - held.at_s >= good_for_s:
            async with _mapped():
                info = await self._js.stream_info(_STREAM, subjects_filter=_mailbox_subject(mailbox))
            subjects = info.state.subjects or {}
            by_sender = {name.rpartition(".")[2]: count for name, count in subjects.items()}
            held = self._counts[mailbox] = _Counts(by_sender, now_s)
        return held

    # --- delivering ---------------------------------------------------------------------------------------

    async def reader(
        self, peer: str, wake: Callable[[], None], replaced: Callable[[], None] = lambda: None
    ) -> Reader:
        """See `MailboxStore`."""
        earlier = self._readers.get(peer)
        if earlier is not None:
            earlier.close()
        reader = _JetStreamReader(
            nc=self._nc,
            js=self._js,
            kv=self._kv,
            peer=peer,
            wake=wake,
            replaced=replaced,
            on_close=lambda: self._forget(peer),
        )
        self._readers[peer] = reader
        async with _mapped():
            for task in await reader.start():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return reader

    def _forget(self, peer: str) -> None:
        reader = self._readers.get(peer)
        if reader is not None and reader.closed:
            del self._readers[peer]

    async def acked_through(self, peer: str) -> int:
        """See `MailboxStore`."""
        async with _mapped():
            try:
                first = await self._js.get_msg(_STREAM, seq=1, subject=_mailbox_subject(peer), next=True)
                return (first.seq or 1) - 1
            except NotFoundError:
                return (await self._js.stream_info(_STREAM)).state.last_seq

    def ack(self, peer: str, through: int) -> None:
        """See `MailboxStore`."""
        self._counts.pop(peer, None)
        reader = self._readers.get(peer)
        if reader is not None:
            self.totals.acked += reader.acknowledge(through)

    def __repr__(self) -> str:
        return f"JetStreamMailboxes(replicas={self._replicas})"


@dataclass(slots=True)
class _JetStreamReader:
    """Fetches one mailbox ahead of its connection, within bounds, and purges what is acknowledged."""

    nc: Client
    js: JetStreamContext
    kv: KeyValue
    peer: str
    wake: Callable[[], None]
    replaced: Callable[[], None]
    on_close: Callable[[], object]
    closed: bool = False
    queue: list[StoredRun] = field(default_factory=list)
    queued_bytes: int = 0
    next_seq: int = 1
    delivered: list[int] = field(default_factory=list)
    purge_through: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    subscriptions: list[Subscription] = field(default_factory=list)
    fetching: asyncio.Task[None] | None = None
    turn: int = 0
    """Rises with every reader of this mailbox on any replica; 0 until it is known."""
    latest_turn: int = 0
    acks: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> list[asyncio.Task[None]]:
        """Say that this replica reads now, subscribe to wakes and begin to fetch; returns the tasks."""
        mailbox = _hash(self.peer)
        self.subscriptions = [
            await self.nc.subscribe(f"mesh.wake.{mailbox}", cb=self._woken),
            await self.nc.subscribe(f"mesh.read.{mailbox}", cb=self._read_elsewhere),
        ]
        await self.nc.flush()  # listening before anybody can be told of a later reader
        self.turn = await self.kv.put(f"{_TURN}{mailbox}", b"")
        await self.nc.publish(f"mesh.read.{mailbox}", b"%d" % self.turn)
        self.fetching = asyncio.create_task(self._fetch(), name=f"fetch mailbox of {self.peer}")
        purging = asyncio.create_task(self._purge(), name=f"purge mailbox of {self.peer}")
        self._yield_turn()  # a later one may have spoken before our number was known
        return [self.fetching, purging]

    def take(self, max_envelopes: int, max_bytes: int) -> list[StoredRun]:
        """See `Reader.take`."""
        out: list[StoredRun] = []
        while self.queue and len(out) < max_envelopes and not self.closed:
            size = len(self.queue[0].body)
            if out and size > max_bytes:
                break
            run = self.queue.pop(0)
            max_bytes -= size
            self.queued_bytes -= size
            self.delivered.append(run.first_seq)
            out.append(run)
        if out:
            self.news.set()  # room to fetch more
        return out

    def acknowledge(self, through: int) -> int:
        """Purge up to a sequence number, soon; return how many envelopes that are."""
        count = sum(1 for seq in self.delivered if seq <= through)
        del self.delivered[:count]
        self.purge_through = max(self.purge_through, through)
        self.acks.set()
        return count

    def close(self) -> None:
        """See `Reader.close`."""
        if self.closed:
            return
        self.closed = True
        self.on_close()
        self.news.set()
        self.acks.set()  # the purge task writes what is left and ends
        if self.fetching is not None:
            self.fetching.cancel()

    async def _woken(self, _msg: Msg) -> None:
        self.news.set()

    async def _read_elsewhere(self, msg: Msg) -> None:
        self.latest_turn = max(self.latest_turn, int(msg.data))
        self._yield_turn()

    def _yield_turn(self) -> None:
        if 0 < self.turn < self.latest_turn and not self.closed:
            self.close()
            self.replaced()

    async def _fetch(self) -> None:
        subject = _mailbox_subject(self.peer)
        while not self.closed:
            self.news.clear()
            try:
                while len(self.queue) < _QUEUE and self.queued_bytes < _QUEUE_BYTES:
                    # The leader says whether there is more; any replica then gives what follows at once.
                    raw = await self.js.get_msg(_STREAM, seq=self.next_seq, subject=subject, next=True)
                    self._queue([_stored(raw)])
                    self._queue(await self._following(subject))
                    self.wake()
            except NotFoundError:
                pass
            except (NatsError, TimeoutError) as exc:
                _LOG.warning("mailbox not read", extra={"error": type(exc).__name__})
                await asyncio.sleep(_RETRY_AFTER_S)
                continue
            except Exception:  # noqa: BLE001  # the boundary of this task: a strange answer must not end delivery
                _LOG.exception("mailbox not read")
                await asyncio.sleep(_POLL_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self.news.wait()

    def _queue(self, runs: list[StoredRun]) -> None:
        for run in runs:
            self.next_seq = run.first_seq + 1
            self.queue.append(run)
            self.queued_bytes += len(run.body)

    async def _following(self, subject: str) -> list[StoredRun]:
        """Return what follows, as far as the replica that answers has it; the rest is asked for again."""
        room = _QUEUE_BYTES - self.queued_bytes
        if room <= 0:
            return []
        wanted = {"seq": self.next_seq, "next_by_subj": subject, "batch": _QUEUE, "max_bytes": room}
        inbox = self.nc.new_inbox()
        answers = await self.nc.subscribe(inbox)
        found: list[StoredRun] = []
        last = "0"
        try:
            await self.nc.publish(f"$JS.API.DIRECT.GET.{_STREAM}", json.dumps(wanted).encode(), reply=inbox)
            while True:
                msg = await answers.next_msg(timeout=_PUBLISH_S)
                headers = msg.headers or {}
                # A status ends the answer; a break in the chain means that a part was lost on the way.
                if "Status" in headers or headers.get("Nats-Last-Sequence", "0") != last:
                    return found
                last = headers["Nats-Sequence"]
                found.append(_followed(msg))
        except (NatsError, TimeoutError):
            return found
        finally:
            with suppress(NatsError):
                await answers.unsubscribe()

    async def _purge(self) -> None:
        subject, done = _mailbox_subject(self.peer), 0
        while True:
            self.acks.clear()
            through = self.purge_through
            if through > done:
                try:
                    await self.js.purge_stream(_STREAM, seq=through + 1, subject=subject)
                    done = through
                    continue
                except (NatsError, TimeoutError) as exc:
                    # Not fatal: what is not purged is delivered again.
                    _LOG.warning("mailbox not purged", extra={"error": type(exc).__name__})
                    await asyncio.sleep(_RETRY_AFTER_S)
            if self.closed:
                for subscription in self.subscriptions:
                    with suppress(NatsError):
                        await subscription.unsubscribe()
                return
            await self.acks.wait()


def _stored(raw: api.RawStreamMsg) -> StoredRun:
    headers = raw.headers or {}
    at_ms = int(raw.time.timestamp() * 1000) if raw.time is not None else 0
    sender, to = headers.get("Kars-Sender", ""), headers.get("Kars-To", "")
    return StoredRun(raw.seq or 0, 1, sender, to, raw.data or b"", at_ms)


def _followed(msg: Msg) -> StoredRun:
    headers = msg.headers or {}
    at = datetime.fromisoformat(headers["Nats-Time-Stamp"][:19] + "+00:00")
    sender, to = headers.get("Kars-Sender", ""), headers.get("Kars-To", "")
    return StoredRun(int(headers["Nats-Sequence"]), 1, sender, to, msg.data, int(at.timestamp() * 1000))


def _full(counts: _Counts, sizes: _Sizes, sender: str, run: NewRun) -> int:
    """Return why one more envelope does not fit; 0 when it does."""
    own, total, share = counts.by_sender.get(sender, 0), counts.total, run.share_percent
    if total >= run.max_envelopes or (total + 1) * sizes.mean > run.max_bytes:
        return relay_pb2.REFUSAL_REASON_RECIPIENT_FULL
    if own >= run.max_envelopes * share // 100 or (own + 1) * sizes.mean > run.max_bytes * share // 100:
        return relay_pb2.REFUSAL_REASON_SENDER_SHARE
    return 0


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _mailbox_subject(mailbox: str) -> str:
    return f"mesh.mb.{_hash(mailbox)}.*"


@asynccontextmanager
async def _mapped() -> AsyncIterator[None]:
    """Turn what NATS raises into `store_unavailable`; a missing key is the caller's to read."""
    try:
        yield
    except (KeyNotFoundError, KeyWrongLastSequenceError):
        raise
    except (APIError, NatsError, TimeoutError) as exc:
        raise UnavailableError("store_unavailable", f"JetStream failed: {type(exc).__name__}") from exc
