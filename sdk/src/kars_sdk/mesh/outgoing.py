"""Sending: start sessions, encrypt, persist, hand in; what nothing is known about is handed in again."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kars_sdk.mesh import frames
from kars_sdk.mesh.errors import HandshakeError, IdentityError, PayloadError, TransportError
from kars_sdk.mesh.exchange import Exchange
from kars_sdk.mesh.frames import Ack, Resend
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.outbox import Item, Outbox
from kars_sdk.mesh.transport import MAX_BATCH_BYTES, MAX_BATCH_ENVELOPES, Link, Outgoing, Refused
from kars_sdk.mesh.upkeep import Membership

_TICK_S = 5.0
_PERMANENT = frozenset({"edge_forbidden", "payload_too_large", "not_federated", "recipient_unknown"})


@dataclass(frozen=True)
class _Sealed:
    """One envelope of a batch, and what to do when nothing is known about it."""

    outgoing: Outgoing
    again: Callable[[], None]
    item: Item | None = None


class Sender:
    """Hands in what waits."""

    def __init__(
        self, membership: Membership, outbox: Outbox, exchange: Exchange, *, min_backoff_s: float
    ) -> None:
        self._membership = membership
        self._sessions = membership.sessions
        self._outbox = outbox
        self._exchange = exchange
        self._min_backoff_s = min_backoff_s

    async def run(self, link: Link) -> None:
        """Hand in what waits, until the attachment ends."""
        while True:
            self._exchange.wake.clear()
            for item in self._outbox.expired():
                error = PayloadError("message_expired", f"{item.peer} did not acknowledge in time")
                self._outbox.fail(item, error)
            while await self._hand_in(link):
                pass
            due = self._outbox.next_due()
            delay = _TICK_S if due is None else min(_TICK_S, max(0.01, due - self._exchange.clock()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._exchange.wake.wait()

    async def _hand_in(self, link: Link) -> bool:
        """Hand in one batch; False when there is nothing to do now."""
        await self._knock()
        items = self._outbox.due(
            self._exchange.rested(), most=MAX_BATCH_ENVELOPES, most_bytes=MAX_BATCH_BYTES
        )
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
                self._outbox.stored(each.item)
            elif each.item is not None:
                self._refused(each.item, refused[index])
        return True

    async def _knock(self) -> None:
        """Start sessions with peers that something waits for and that we have none with."""
        resting = self._exchange.rested()
        wanted = {item.peer for item in self._outbox.due(resting, most=4096, most_bytes=1 << 40)}
        for peer in sorted((wanted | self._exchange.resend_due) - resting):
            if self._sessions.has_session(peer):
                continue
            try:
                bundle = await self._membership.take_bundle(peer)
                with self._sessions.persisting():
                    first = self._sessions.start(bundle, peer, frames.encode(Resend()))
                self._exchange.answers.append((peer, first))
                self._exchange.resend_due.discard(peer)
            except (IdentityError, HandshakeError) as exc:
                self._exchange.note("peer_not_believed", peer, exc.reason)
                self._exchange.resend_due.discard(peer)
                for item in self._outbox.of(peer):
                    self._outbox.fail(item, exc)
            except TransportError as exc:
                self._exchange.note("no_session", peer, exc.reason)
                self._exchange.rest(peer, max(exc.retry_after_s, self._min_backoff_s * 2))

    def _seal(self, items: list[Item]) -> list[_Sealed]:
        """Encrypt what goes out next, in one transaction: answers, acknowledgements, messages."""
        batch = self._take_answers()
        with self._sessions.persisting():
            for peer in [peer for peer in self._exchange.resend_due if self._sessions.has_session(peer)]:
                self._exchange.resend_due.discard(peer)
                batch.append(
                    _Sealed(
                        self._sealed(peer, frames.encode(Resend())),
                        partial(self._exchange.resend_due.add, peer),
                    )
                )
            for (peer, stream), numbers in list(self._exchange.acks.items()):
                chosen = sorted(numbers)[: frames.MAX_ACKS]
                numbers.difference_update(chosen)
                if not numbers:
                    del self._exchange.acks[peer, stream]
                if self._sessions.has_session(peer):
                    outgoing = self._sealed(peer, frames.encode(Ack(stream, tuple(chosen))))
                    batch.append(_Sealed(outgoing, partial(self._exchange.acknowledge, peer, stream, chosen)))
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
        while self._exchange.answers:
            answer = self._exchange.answers.popleft()
            again = partial(self._exchange.answers.append, answer)
            batch.append(_Sealed(Outgoing(answer[0], os.urandom(16), answer[1]), again))
        return batch

    def _sealed(self, peer: PeerName, frame: bytes) -> Outgoing:
        return Outgoing(peer, os.urandom(16), self._sessions.seal(peer, frame))

    def _refused(self, item: Item, refused: Refused) -> None:
        if refused.reason in _PERMANENT:
            self._exchange.note("not_sent", item.peer, refused.reason)
            self._outbox.fail(
                item, TransportError(refused.reason, f"the relay refused a message to {item.peer}")
            )
            return
        self._outbox.later(item, max(refused.retry_after_s, self._min_backoff_s))


def _nothing() -> None:
    """A message of the outbox is tried again by itself."""
