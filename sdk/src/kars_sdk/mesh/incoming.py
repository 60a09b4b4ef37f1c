"""Receiving: decrypt, decide, persist, release to the application, and only then acknowledge."""

import contextlib

from kars.mesh.v1 import relay_pb2

from kars_sdk.mesh import frames, trust
from kars_sdk.mesh.errors import (
    IdentityError,
    KnockRefusedError,
    MeshError,
    NoSessionError,
    StoreError,
    TransportError,
)
from kars_sdk.mesh.exchange import Exchange
from kars_sdk.mesh.frames import Ack, Data
from kars_sdk.mesh.inbox import Inbox, Message
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.outbox import Outbox
from kars_sdk.mesh.sessions import KNOCK, Rejected
from kars_sdk.mesh.transport import Link
from kars_sdk.mesh.upkeep import Membership


class Receiver:
    """Takes what an attachment delivers."""

    def __init__(self, membership: Membership, inbox: Inbox, outbox: Outbox, exchange: Exchange) -> None:
        self._membership = membership
        self._sessions = membership.sessions
        self._inbox = inbox
        self._outbox = outbox
        self._exchange = exchange

    async def run(self, link: Link) -> None:
        """Take what the relay delivers, until the attachment ends."""
        async for frame in link.frames():
            if frame.HasField("notice") and frame.notice.HasField("prekeys_low"):
                self._membership.prekeys_low()
            for delivery in frame.deliveries:
                while self._inbox.full:
                    await self._inbox.wait_for_room()
                await self._take(link, delivery)

    async def _take(self, link: Link, delivery: relay_pb2.Delivery) -> None:
        """Decrypt and keep a run of envelopes in one transaction; then say so."""
        sender = delivery.sender or None
        if sender is not None and not _is_name(sender):
            self._exchange.note("refused", "", "peer_name_invalid")
            await link.ack(delivery.first_seq + len(delivery.envelopes) - 1)
            return
        await self._ask_about(sender, delivery)
        released: list[Message] = []
        with self._sessions.persisting():
            for envelope in delivery.envelopes:
                released += self._open(envelope.payload, sender)
        await self._inbox.release(released)
        await link.ack(delivery.first_seq + len(delivery.envelopes) - 1)
        if self._exchange.owes:
            self._exchange.wake.set()

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
            self._exchange.note("knock_refused", exc.peer, exc.reason)
            if exc.rejection:
                self._exchange.answers.append((peer_name(exc.peer), exc.rejection))
        except StoreError:
            raise
        except NoSessionError as exc:
            self._exchange.note("refused", sender or "", exc.reason)
            if sender is not None:
                self._ask_again(peer_name(sender))
        except MeshError as exc:
            self._exchange.note("refused", sender or "", exc.reason)
        return []

    def _frame(self, peer: PeerName, frame: frames.Frame) -> list[Message]:
        if isinstance(frame, Data):
            released = self._inbox.accept(peer, frame)
            self._exchange.acknowledge(peer, frame.stream, [frame.number])
            return released
        if isinstance(frame, Ack):
            self._outbox.acknowledged(peer, frame)
        else:
            self._outbox.again(peer)
            self._exchange.wake.set()
        return []

    def _rejected(self, rejected: Rejected) -> None:
        self._exchange.note("knock_rejected", rejected.peer, rejected.reason)
        if rejected.retry_after_s:
            self._exchange.rest(rejected.peer, rejected.retry_after_s)
            self._outbox.again(rejected.peer)
            return
        error = KnockRefusedError(rejected.reason, f"{rejected.peer} refused our KNOCK: {rejected.reason}")
        for item in self._outbox.of(rejected.peer):
            self._outbox.fail(item, error)

    def _ask_again(self, peer: PeerName) -> None:
        """The peer writes in a session that we do not have: start one of ours, if it may write to us."""
        if not trust.withdrawn(
            self._sessions.policy, sender=peer, receiver=self._membership.name, now=self._exchange.clock()
        ):
            self._exchange.ask_again(peer)


def _is_name(text: str) -> bool:
    try:
        peer_name(text)
    except IdentityError:
        return False
    return True
