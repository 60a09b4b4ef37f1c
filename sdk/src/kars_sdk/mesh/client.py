"""The mesh client: everything between `send` on one side and `inbox` on the other.

One task attaches and reads, one hands in what waits. Received: decrypt, persist, then acknowledge to the
relay and (encrypted) to the sender. Sent: kept until the peer acknowledged. After any end of the attachment
it connects again with jittered back-off; sessions and queues are not touched by that.
"""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from kars.mesh.v1 import relay_pb2

from kars_sdk.mesh import frames
from kars_sdk.mesh.directory import Directory, to_statement
from kars_sdk.mesh.errors import (
    HandshakeError,
    IdentityError,
    KnockRefusedError,
    MeshError,
    NoSessionError,
    PayloadError,
    StoreError,
    TransportError,
)
from kars_sdk.mesh.frames import Ack, Data, Resend
from kars_sdk.mesh.inbox import Inbox, Message
from kars_sdk.mesh.names import PeerName, peer_name, trust_domain
from kars_sdk.mesh.outbox import Item, Outbox
from kars_sdk.mesh.sessions import KNOCK, Rejected, Sessions
from kars_sdk.mesh.transport import MAX_BATCH_BYTES, MAX_BATCH_ENVELOPES, Link, Outgoing, Refused, Transport
from kars_sdk.mesh.upkeep import Membership

_LOG = logging.getLogger(__name__)
DEFAULT_TTL_S = 72 * 3600.0
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
_TICK_S = 5.0
_RESEND_EVERY_S = 60.0
_PERMANENT = frozenset({"edge_forbidden", "payload_too_large", "not_federated", "recipient_unknown"})
_MAX_EVENTS = 256
_MAX_RESENDS = 1024


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a person or an audit log should know. Never holds content."""

    kind: str
    peer: str
    reason: str


@dataclass(frozen=True)
class Sent:
    """A message that is on disk and on its way."""

    item: Item

    async def delivered(self, timeout_s: float | None = None) -> None:
        """Wait until the peer has decrypted and kept it.

        Raises:
            TimeoutError: not yet; it goes on being delivered.
            KnockRefusedError: the peer's policy does not let us in.
            MeshError: it was given up, and why.
        """
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self.item.delivered)


@dataclass(frozen=True)
class _Sealed:
    """One envelope of a batch, and what to do when nothing is known about it."""

    outgoing: Outgoing
    again: Callable[[], None]
    item: Item | None = None


class MeshClient:
    """One agent's connection to the mesh. Use as an async context manager."""

    def __init__(
        self,
        membership: Membership,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.time,
        min_backoff_s: float = MIN_BACKOFF_S,
    ) -> None:
        self._membership = membership
        self._transport = transport
        self._clock = clock
        self._min_backoff_s = min_backoff_s
        self._sessions = membership.sessions
        self._store = membership.store
        self.directory: Directory = membership.directory
        self.inbox = Inbox(self._store, clock)
        self.outbox = Outbox(self._store, clock)
        self.events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._acks: dict[tuple[PeerName, bytes], set[int]] = {}
        self._answers: deque[tuple[PeerName, bytes]] = deque(maxlen=_MAX_EVENTS)
        self._resend: dict[PeerName, float] = {}
        self._resend_due: set[PeerName] = set()
        self._waiting: dict[PeerName, float] = {}
        self._wake = asyncio.Event()
        self._link: Link | None = None
        self._attached = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> PeerName:
        """Who we are."""
        return self._membership.name

    @property
    def sessions(self) -> Sessions:
        """The sessions, for status and safety numbers."""
        return self._sessions

    async def __aenter__(self) -> Self:
        """Start; returns at once, attached or not."""
        self._task = asyncio.create_task(self._run(), name="mesh-client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; what was not acknowledged stays on disk."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, MeshError):  # told by `attached` and `receive`
                await self._task

    async def attached(self, timeout_s: float | None = None) -> None:
        """Wait until a relay has welcomed us.

        Raises:
            TimeoutError: not in time.
            MeshError: the client has stopped for good, and why.
        """
        waiting = asyncio.create_task(self._attached.wait(), name="mesh-attached")
        try:
            tasks = [waiting] if self._task is None else [waiting, self._task]
            done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TimeoutError("not attached to a relay yet")
            for task in done:
                task.result()
        finally:
            waiting.cancel()

    async def send(self, peer: PeerName, kind: str, body: bytes, *, ttl_s: float = DEFAULT_TTL_S) -> Sent:
        """Send a message; on return it is on disk, and goes out when it can.

        Raises:
            PayloadError: it cannot be sent at all.
        """
        if peer == self.name:
            raise PayloadError("peer_is_self", "a message to oneself does not need the mesh")
        item = self.outbox.add(peer, kind, body, ttl_s=ttl_s)
        self._wake.set()
        return Sent(item)

    async def receive(
        self, wanted: Callable[[Message], bool] = lambda _: True, *, timeout_s: float
    ) -> Message | None:
        """Take the next message that is wanted, or None when none came in time.

        Raises:
            MeshError: none came, and the client has stopped for good.
        """
        found = await self.inbox.wait(wanted, timeout_s)
        if not found and self._task is not None and self._task.done():
            self._task.result()
        if not found:
            return None
        await self.inbox.mark_read(found[:1])
        return found[0]

    # --- attached -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        backoff = self._min_backoff_s
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._membership.ready()
                async with self._transport.attach(self._prove) as link:
                    await self._serve(link)
            except TransportError as exc:
                self._note("transport", "", exc.reason)
                if exc.fatal:
                    _LOG.warning("the mesh attachment ended for good: %s", exc.reason)
                    raise
                if asyncio.get_running_loop().time() - started > MAX_BACKOFF_S:
                    backoff = self._min_backoff_s
                await asyncio.sleep(max(exc.retry_after_s, random.uniform(backoff / 2, backoff)))  # noqa: S311 - jitter, no secret
                backoff = min(MAX_BACKOFF_S, backoff * 2)
            finally:
                self._link = None
                self._attached.clear()

    def _prove(self, hello: relay_pb2.Hello) -> relay_pb2.Connect:
        """Answer a hello; only that of our own trust domain's relay.

        Raises:
            TransportError: `relay_mismatch`.
        """
        expected = f"spiffe://{trust_domain(self.name)}/svc/relay"
        if hello.relay != expected:
            raise TransportError(
                "relay_mismatch", f"{hello.relay[:128]!r} answered, expected {expected}", fatal=True
            )
        return relay_pb2.Connect(
            peer=self.name,
            identity=to_statement(self._membership.statement),
            proof=self._membership.identity.connect_proof(
                nonce=hello.nonce, relay=hello.relay, peer=self.name
            ),
        )

    async def _serve(self, link: Link) -> None:
        self._link = link
        self._attached.set()
        self._wake.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(link), name="mesh-receive")
                tasks.create_task(self._hand_in(link), name="mesh-hand-in")
                tasks.create_task(self._keep_up(), name="mesh-upkeep")
        except BaseExceptionGroup as group:
            raise _cause(group) from group

    async def _keep_up(self) -> None:
        """Every few seconds: what waited for a gap, what the registry should have."""
        while True:
            with self._persisting():
                passed = self.inbox.pass_gaps()
            await self.inbox.release(passed)
            await self._membership.keep_up()
            self._wake.set()
            await asyncio.sleep(_TICK_S)

    # --- incoming -----------------------------------------------------------------------------------------

    async def _receive(self, link: Link) -> None:
        async for frame in link.frames():
            if frame.HasField("notice") and frame.notice.HasField("prekeys_low"):
                self._membership.prekeys_low()
            for delivery in frame.deliveries:
                while self.inbox.full:
                    await self.inbox.wait_for_room()
                await self._take(link, delivery)

    async def _take(self, link: Link, delivery: relay_pb2.Delivery) -> None:
        """Decrypt and keep a run of envelopes in one transaction; then say so."""
        sender = delivery.sender or None
        if sender is not None and not _is_name(sender):
            self._note("refused", "", "peer_name_invalid")
            await link.ack(delivery.first_seq + len(delivery.envelopes) - 1)
            return
        await self._ask_about(sender, delivery)
        released: list[Message] = []
        with self._persisting():
            for envelope in delivery.envelopes:
                released += self._open(envelope.payload, sender)
        await self.inbox.release(released)
        await link.ack(delivery.first_seq + len(delivery.envelopes) - 1)
        if self._acks or self._answers or self._resend_due:
            self._wake.set()

    async def _ask_about(self, sender: str | None, delivery: relay_pb2.Delivery) -> None:
        """Learn the reputation of a stranger who knocks; unknown when the registry is away, so refused."""
        knocks = any(envelope.payload[:1] == bytes((KNOCK,)) for envelope in delivery.envelopes)
        if not knocks or sender is None or self._sessions.policy.threshold == 0:
            return
        with contextlib.suppress(TransportError, IdentityError):
            peer = peer_name(sender)
            if not self._sessions.has_session(peer) and not self._membership.knows_reputation(peer):
                await self._membership.learn_reputation(peer)

    def _open(self, payload: bytes, sender: str | None) -> list[Message]:
        """Handle one envelope. What is refused is noted and dropped: it would be refused again."""
        try:
            opened = self._sessions.open(payload, sender=sender)
            if isinstance(opened, Rejected):
                self._rejected(opened)
                return []
            return self._frame(opened.peer, frames.decode(opened.payload))
        except KnockRefusedError as exc:
            self._note("knock_refused", exc.peer, exc.reason)
            if exc.rejection:
                self._answers.append((peer_name(exc.peer), exc.rejection))
        except StoreError:
            raise
        except NoSessionError as exc:
            self._note("refused", sender or "", exc.reason)
            if sender is not None:
                self._ask_again(peer_name(sender))
        except MeshError as exc:
            self._note("refused", sender or "", exc.reason)
        return []

    def _frame(self, peer: PeerName, frame: frames.Frame) -> list[Message]:
        if isinstance(frame, Data):
            released = self.inbox.accept(peer, frame)
            self._owe(peer, frame.stream, [frame.number])
            return released
        if isinstance(frame, Ack):
            self.outbox.acknowledged(peer, frame)
        else:
            self.outbox.again(peer)
            self._wake.set()
        return []

    def _rejected(self, rejected: Rejected) -> None:
        self._note("knock_rejected", rejected.peer, rejected.reason)
        if rejected.retry_after_s:
            self._waiting[rejected.peer] = self._clock() + rejected.retry_after_s
            self.outbox.again(rejected.peer)
            return
        error = KnockRefusedError(rejected.reason, f"{rejected.peer} refused our KNOCK: {rejected.reason}")
        for item in self.outbox.of(rejected.peer):
            self.outbox.fail(item, error)

    def _ask_again(self, peer: PeerName) -> None:
        """The peer writes in a session that we do not have: start one of ours, at most once a minute."""
        now = self._clock()
        if now - self._resend.get(peer, 0) < _RESEND_EVERY_S:
            return
        if len(self._resend) >= _MAX_RESENDS:  # a relay may invent senders; it does not grow our memory
            self._resend = {each: at for each, at in self._resend.items() if now - at < _RESEND_EVERY_S}
        if len(self._resend) < _MAX_RESENDS:
            self._resend[peer] = now
            self._resend_due.add(peer)

    # --- outgoing -----------------------------------------------------------------------------------------

    async def _hand_in(self, link: Link) -> None:
        while True:
            self._wake.clear()
            for item in self.outbox.expired():
                error = PayloadError("message_expired", f"{item.peer} did not acknowledge in time")
                self.outbox.fail(item, error)
            while await self._hand_in_some(link):
                pass
            due = self.outbox.next_due()
            delay = _TICK_S if due is None else min(_TICK_S, max(0.01, due - self._clock()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    async def _hand_in_some(self, link: Link) -> bool:
        """Hand in one batch; False when there is nothing to do now."""
        await self._open_doors()
        now = self._clock()
        self._waiting = {peer: until for peer, until in self._waiting.items() if until > now}
        items = self.outbox.due(set(self._waiting), most=MAX_BATCH_ENVELOPES, most_bytes=MAX_BATCH_BYTES)
        batch = self._seal(items)
        if not batch:
            return False
        try:
            refused = {each.index: each for each in await link.submit([each.outgoing for each in batch])}
        except TransportError:
            for each in batch:
                each.again()
            raise
        for index, each in enumerate(batch):
            if each.item is not None and index not in refused:
                self.outbox.stored(each.item)
            elif each.item is not None:
                self._refused(each.item, refused[index])
        return True

    async def _open_doors(self) -> None:
        """Start sessions with peers that something waits for and that we have none with."""
        wanted = {item.peer for item in self.outbox.due(set(self._waiting), most=4096, most_bytes=1 << 40)}
        for peer in sorted((wanted | self._resend_due) - self._waiting.keys()):
            if self._sessions.has_session(peer):
                continue
            try:
                bundle = await self._membership.take_bundle(peer)
                with self._persisting():
                    first = self._sessions.start(bundle, peer, frames.encode(Resend()))
                self._answers.append((peer, first))
                self._resend_due.discard(peer)
            except (IdentityError, HandshakeError) as exc:
                self._note("peer_not_believed", peer, exc.reason)
                self._resend_due.discard(peer)
                for item in self.outbox.of(peer):
                    self.outbox.fail(item, exc)
            except TransportError as exc:
                self._note("no_session", peer, exc.reason)
                self._waiting[peer] = self._clock() + max(exc.retry_after_s, self._min_backoff_s * 2)

    def _seal(self, items: list[Item]) -> list[_Sealed]:
        """Encrypt what goes out next, in one transaction: answers, acknowledgements, messages."""
        batch = self._take_answers()
        with self._persisting():
            for peer in [peer for peer in self._resend_due if self._sessions.has_session(peer)]:
                self._resend_due.discard(peer)
                batch.append(
                    _Sealed(self._sealed(peer, frames.encode(Resend())), partial(self._resend_due.add, peer))
                )
            for (peer, stream), numbers in list(self._acks.items()):
                chosen = sorted(numbers)[: frames.MAX_ACKS]
                numbers.difference_update(chosen)
                if not numbers:
                    del self._acks[peer, stream]
                if self._sessions.has_session(peer):
                    outgoing = self._sealed(peer, frames.encode(Ack(stream, tuple(chosen))))
                    batch.append(_Sealed(outgoing, partial(self._owe, peer, stream, chosen)))
            for item in items:
                if not self._sessions.has_session(item.peer):
                    continue
                if item.payload is None:
                    sealed = self._sealed(item.peer, frames.encode(item.data))
                    item.payload, item.envelope_id = sealed.payload, sealed.envelope_id
                outgoing = Outgoing(item.peer, item.envelope_id, item.payload)
                batch.append(_Sealed(outgoing, _nothing, item))
        return batch

    def _take_answers(self) -> list[_Sealed]:
        """Take what is sealed already: KNOCKs and rejections."""
        batch: list[_Sealed] = []
        while self._answers:
            answer = self._answers.popleft()
            again = partial(self._answers.append, answer)
            batch.append(_Sealed(Outgoing(answer[0], os.urandom(16), answer[1]), again))
        return batch

    def _owe(self, peer: PeerName, stream: bytes, numbers: Iterable[int]) -> None:
        self._acks.setdefault((peer, stream), set()).update(numbers)

    def _sealed(self, peer: PeerName, frame: bytes) -> Outgoing:
        return Outgoing(peer, os.urandom(16), self._sessions.seal(peer, frame))

    def _refused(self, item: Item, refused: Refused) -> None:
        if refused.reason in _PERMANENT:
            self._note("not_sent", item.peer, refused.reason)
            self.outbox.fail(
                item, TransportError(refused.reason, f"the relay refused a message to {item.peer}")
            )
            return
        self.outbox.later(item, max(refused.retry_after_s, self._min_backoff_s))

    @contextlib.contextmanager
    def _persisting(self) -> Iterator[None]:
        """One commit for many moves; when it fails, memory is read again from disk."""
        try:
            with self._store.transaction():
                yield
        except StoreError:
            self._sessions.reload()
            raise

    def _note(self, kind: str, peer: str, reason: str) -> None:
        self.events.append(Event(kind=kind, peer=peer, reason=reason))
        _LOG.debug("mesh: %s %s", kind, reason)


def _is_name(text: str) -> bool:
    try:
        peer_name(text)
    except IdentityError:
        return False
    return True


def _nothing() -> None:
    """A message of the outbox is tried again by itself."""


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error that ended an attachment; a bug stays a group, with all that is in it."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        exc = pending.pop()
        if isinstance(exc, BaseExceptionGroup):
            pending.extend(exc.exceptions)
        else:
            leaves.append(exc)
    if not all(isinstance(exc, MeshError) for exc in leaves):
        return group
    return max(leaves, key=lambda exc: isinstance(exc, StoreError) or getattr(exc, "fatal", False))
