"""All sessions of this agent: starts, accepts, finds, persists.

    payload  = 1 | KNOCK block | message       until the peer has answered
             | 2 | message
             | 3 | rejection

Order, always: authenticate, decide, move in memory, persist, release. When persisting fails, the moved state
is dropped and read again from disk; nothing was released. One-time prekeys go in the same transaction in
which the session that used them is first written.

Several sessions with one peer can exist: both may knock at once, a peer may lose its state, an attacker may
replay. A new session never displaces one that works. We send in the newest session that the *peer* was last
heard in; where both knocked at once, in the one with the smaller id, on which both sides agree.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kars_sdk.mesh import bundles, handshake, identity, primitives, trust
from kars_sdk.mesh import knock as knocks
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import (
    CloneSuspectedError,
    ForgedError,
    HandshakeError,
    IdentityError,
    KnockRefusedError,
    MalformedError,
    MeshError,
    NoSessionError,
    ReplayedError,
    SkippedTooFarError,
    StoreError,
)
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.knock import Knock
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.prekeys import KEEP_AFTER_ROTATION_S, ROTATE_AFTER_S, Bundle, Prekeys
from kars_sdk.mesh.session import MAX_MESSAGE_BYTES, SESSION_ID_BYTES, Session, session_id_of
from kars_sdk.mesh.statements import SignedStatement, Statement, TrustKeys
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.trust import Decision, KnockLimiter, TrustPolicy

KNOCK, MESSAGE, REJECTION = 1, 2, 3
MAX_PAYLOAD_BYTES = 1 + 4 + knocks.MAX_KNOCK_BYTES + 64 + MAX_MESSAGE_BYTES
KEPT_SESSIONS = 4
"""Sessions kept with one peer; the one that was silent longest is forgotten first."""

MAX_REMEMBERED_KNOCKS = 20_000
_SWEEP_EVERY_S = 600.0
_ALLOWED_FOR_S = 5.0
_SESSION, _PEER, _SEEN = "session", "peer", "knock"


@dataclass(frozen=True, kw_only=True)
class Me:
    """Who this agent is in the mesh."""

    name: PeerName
    identity: IdentityKey
    statement: SignedStatement
    trust: TrustKeys


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A payload that was authentic, persisted, and is the caller's now."""

    peer: PeerName
    payload: bytes
    session_id: bytes
    new_session: bool


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """The peer's verified "no" to a KNOCK of ours; that session is gone."""

    peer: PeerName
    reason: str
    retry_after_s: int


@dataclass
class _Peer:
    """What is kept about a peer: its pinned key, and its sessions, the one we send in first."""

    key: bytes = b""
    serial: int = 0
    had_kem: bool = False
    verified: bool = False
    sessions: list[bytes] = field(default_factory=list)

    def learn(self, statement: Statement, *, post_quantum: bool) -> None:
        """Take up what a checked statement says about the peer.

        Raises:
            IdentityError: `statement_rollback`, `identity_key_changed`.
        """
        if statement.serial < self.serial:
            raise IdentityError(
                "statement_rollback", f"an older statement about {statement.peer} came after a newer"
            )
        if self.key not in {b"", statement.identity_key}:
            if self.verified:
                raise IdentityError(
                    "identity_key_changed",
                    f"{statement.peer} has another key than the one whose safety number a person compared: "
                    "compare the new number, or forget the old",
                )
            if statement.serial == self.serial:
                raise IdentityError("statement_rollback", f"two keys are stated for {statement.peer} at once")
        self.key, self.serial = statement.identity_key, statement.serial
        self.had_kem = self.had_kem or post_quantum

    def dump(self) -> bytes:
        writer = Writer().variable(self.key).u64(self.serial).u8(self.had_kem).u8(self.verified)
        writer.u8(len(self.sessions))
        for session in self.sessions:
            writer.raw(session)
        return writer.bytes()

    @classmethod
    def load(cls, record: bytes | None) -> "_Peer":
        if record is None:
            return cls()
        reader = Reader(record, what="peer record", max_bytes=1024)
        key, serial, had_kem, verified = reader.variable(32), reader.u64(), reader.flag(), reader.flag()
        return cls(key, serial, had_kem, verified, [reader.raw(SESSION_ID_BYTES) for _ in range(reader.u8())])


class Sessions:
    """Encrypts to peers and decrypts from them; the only writer of session state."""

    def __init__(
        self,
        me: Me,
        store: Store,
        prekeys: Prekeys,
        policy: TrustPolicy,
        *,
        clock: Callable[[], float] = time.time,
        reputation: Callable[[PeerName], int | None] = lambda _: None,
    ) -> None:
        self.me = me
        self.policy = policy
        self.refused: dict[str, int] = {}
        """How often each reason refused something; for status, not for decisions."""
        self._store = store
        self._prekeys = prekeys
        self._clock = clock
        self._reputation = reputation
        self._limiter = KnockLimiter(clock)
        self._cache: dict[bytes, Session] = {}
        self._sweep_at = 0.0
        self._allowed: dict[PeerName, tuple[TrustPolicy, float]] = {}

    def has_session(self, peer: PeerName) -> bool:
        """Tell whether messages to a peer can be encrypted now."""
        return bool(self._peer(peer).sessions)

    def answered(self, peer: PeerName) -> bool:
        """Tell whether the peer has proven that it holds a session with us."""
        return any(session.answered for session in self.of(peer))

    def of(self, peer: PeerName) -> list[Session]:
        """Return the sessions with a peer, the one we send in first."""
        return [session for id_ in self._peer(peer).sessions if (session := self._load(id_)) is not None]

    def pinned_key(self, peer: PeerName) -> bytes | None:
        """Return the identity key that a peer was last known by."""
        return self._peer(peer).key or None

    def fingerprint(self, peer: PeerName) -> str | None:
        """Return the safety number of us and a peer, or None when its key is not known yet."""
        key = self._peer(peer).key
        if not key:
            return None
        return identity.fingerprint(
            own=self.me.name, own_key=self.me.identity.public, peer=peer, peer_key=key
        )

    def set_verified(self, peer: PeerName, *, verified: bool) -> None:
        """Note that a person compared the safety number, or takes that back. Verified keys do not change.

        Raises:
            NoSessionError: `peer_unknown`.
        """
        known = self._peer(peer)
        if not known.key:
            raise NoSessionError("peer_unknown", f"nothing is known of {peer} yet")
        known.verified = verified
        with self._store.transaction():
            self._store.put(_PEER, peer.encode(), known.dump())

    def is_verified(self, peer: PeerName) -> bool:
        """Tell whether a person compared the peer's safety number."""
        return self._peer(peer).verified

    def peers(self) -> list[PeerName]:
        """Return all peers that something is known of."""
        return [peer_name(name.decode()) for name, _ in self._store.items(_PEER)]

    def start(self, bundle: Bundle, peer: PeerName, payload: bytes, *, purpose: str = "session") -> bytes:
        """Knock at a peer; the payload travels along and is read only if it lets us in.

        Raises:
            IdentityError, HandshakeError: see `bundles.verify`; also `downgrade_refused`.
        """
        known = self._peer(peer)
        verified = bundles.verify(
            bundle, peer=peer, trust=self.me.trust, now=self._clock(), allow_classic=self.policy.allow_classic
        )
        if bundle.kem_prekey is None and known.had_kem:
            raise HandshakeError(
                "downgrade_refused", f"{peer} had a post-quantum prekey before: refused without"
            )
        known.learn(verified.statement, post_quantum=bundle.kem_prekey is not None)
        started = handshake.initiate(
            self.me.identity, own=self.me.name, statement=self.me.statement, verified=verified,
            purpose=purpose, now=self._clock(),
        )  # fmt: skip
        session, message = Session.initiate(
            peer=peer, peer_key=verified.statement.identity_key, keys=started.keys,
            peer_ratchet_key=bundle.signed_prekey.public_key, payload=payload, created=self._clock(),
            post_quantum=bundle.kem_prekey is not None,
        )  # fmt: skip
        session.knock = started.knock.block
        with self._moving(session):
            self._remember(session, known)
        return bytes((KNOCK,)) + session.knock + message

    def seal(self, peer: PeerName, payload: bytes) -> bytes:
        """Encrypt for a peer; on return the moved state is on disk.

        Raises:
            NoSessionError: `no_session`.
        """
        sessions = self.of(peer)
        if not sessions:
            raise NoSessionError("no_session", f"there is no session with {peer}: knock first")
        session = sessions[0]
        with self._moving(session):
            message = session.encrypt(payload)
        if session.knock:
            return bytes((KNOCK,)) + session.knock + message
        return bytes((MESSAGE,)) + message

    def open(self, payload: bytes, *, sender: str | None) -> Opened | Rejected:
        """Authenticate, decide, decrypt and persist what a relay delivered.

        `sender` is whom the relay names; None for a sealed sender. Plaintext is never accepted: there is no
        form for it.

        Raises:
            MeshError: it was refused; no session has changed. `KnockRefusedError` when policy did so, with
                `rejection` for the sender.
        """
        try:
            return self._open(payload, sender)
        except MeshError as exc:
            self.refused[exc.reason] = self.refused.get(exc.reason, 0) + 1
            raise

    @contextlib.contextmanager
    def persisting(self) -> Iterator[None]:
        """One commit for many moves; when it fails, the disk says where sessions stand.

        Raises:
            StoreError: nothing was written, and nothing may be released.
        """
        try:
            with self._store.transaction():
                yield
        except StoreError:
            self._cache.clear()
            raise

    def forget(self, peer: PeerName) -> None:
        """Drop all sessions with a peer; its pinned key stays."""
        known = self._peer(peer)
        with self._store.transaction():
            for session_id in known.sessions:
                self._store.delete(_SESSION, session_id)
                self._cache.pop(session_id, None)
            known.sessions = []
            self._store.put(_PEER, peer.encode(), known.dump())

    def _open(self, payload: bytes, sender: str | None) -> Opened | Rejected:
        reader = Reader(payload, what="payload", max_bytes=MAX_PAYLOAD_BYTES)
        kind = reader.u8()
        if kind == MESSAGE:
            return self._message(reader.rest(), sender)
        if kind == KNOCK:
            signed, signature = reader.variable(knocks.MAX_KNOCK_BYTES), reader.raw(64)
            message = reader.rest()
            if session_id_of(message) != knocks.knock_id(signed):
                raise MalformedError("knock_of_other_session", "KNOCK and message do not belong together")
            session = self._load(session_id_of(message))
            if session is not None:
                return self._message(message, sender)
            return self._knocked(knocks.read(signed, signature), message, sender)
        if kind == REJECTION:
            return self._rejected(reader.rest(), sender)
        raise MalformedError("kind_unknown", f"a payload of kind {kind} is not known: nothing but sessions")

    def _message(self, message: bytes, sender: str | None) -> Opened:
        session = self._load(session_id_of(message))
        if session is None:
            raise NoSessionError("session_unknown", "the message belongs to no session that is kept")
        if sender is not None and sender != session.peer:
            raise MalformedError("sender_mismatch", "the relay names another sender than the session's peer")
        self._still_allowed(session.peer)
        with self._moving(session):
            payload = session.decrypt(message)
            known = self._peer(session.peer)
            if known.sessions[:1] != [session.session_id]:
                known.sessions.remove(session.session_id)
                known.sessions.insert(0, session.session_id)
                self._store.put(_PEER, session.peer.encode(), known.dump())
        return Opened(peer=session.peer, payload=payload, session_id=session.session_id, new_session=False)

    def _still_allowed(self, peer: PeerName) -> None:
        """Refuse a peer whose edge was withdrawn after it had been let in.

        Raises:
            KnockRefusedError: `edge_missing`, `peer_denied`. There is no rejection to send: it has a session.
        """
        now = self._clock()
        policy, until = self._allowed.get(peer, (None, 0.0))
        if policy is self.policy and now < until:
            return
        reason = trust.withdrawn(self.policy, sender=peer, receiver=self.me.name, now=now)
        if reason:
            raise KnockRefusedError(reason, f"{peer} may not write to us any more: {reason}", peer=peer)
        if len(self._allowed) >= MAX_REMEMBERED_KNOCKS:
            self._allowed.clear()
        self._allowed[peer] = (self.policy, now + _ALLOWED_FOR_S)

    def _knocked(self, knock: Knock, message: bytes, sender: str | None) -> Opened:
        now = self._clock()
        statement = knocks.verify(
            knock, own=self.me.name, own_key=self.me.identity.public, trust=self.me.trust, now=now,
            transport_sender=sender,
        )  # fmt: skip
        if self._store.get(_SEEN, knock.knock_id) is not None:
            raise ReplayedError("knock_replayed", f"this KNOCK of {knock.sender} was handled before")
        self._decide(knock, now)
        shake = knock.handshake
        classic = shake.kem_algorithm == 0
        known = self._peer(knock.sender)
        known.learn(statement, post_quantum=not classic)
        if classic and (self._prekeys.offers_kem or not self.policy.allow_classic):
            raise HandshakeError("downgrade_refused", f"{knock.sender} left out the post-quantum part")
        if not classic and shake.kem_algorithm != primitives.KEM_1024:
            raise HandshakeError("kem_unknown", "our KEM prekeys are ML-KEM-1024")
        kem_id = None if classic else shake.kem_id
        private = self._prekeys.private(
            signed_id=shake.signed_prekey_id, one_time_id=shake.one_time_id, kem_id=kem_id
        )
        session, payload = Session.accept(
            peer=knock.sender, peer_key=statement.identity_key, own_ratchet_key=private.signed,
            message=message,
            keys=handshake.accept(self.me.identity, knock=knock, statement=statement, private=private),
            created=now, post_quantum=not classic,
        )  # fmt: skip
        with self._moving(session):
            self._remember(session, known)
            self._prekeys.used(one_time_id=shake.one_time_id, kem_id=kem_id)
            self._store.put(_SEEN, knock.knock_id, _until(now))
        return Opened(peer=knock.sender, payload=payload, session_id=session.session_id, new_session=True)

    def _decide(self, knock: Knock, now: float) -> None:
        """Ask rate and policy.

        Raises:
            KnockRefusedError: with the rejection to send back.
        """
        decision, retry = Decision(accepted=False, reason="knock_rate_exceeded"), 60
        if self._limiter.allow(knock.sender, self.policy) and self._room(now):
            decision, retry = (
                trust.decide(
                    self.policy, sender=knock.sender, receiver=self.me.name, purpose=knock.purpose, now=now,
                    reputation=self._reputation(knock.sender),
                ),
                0,
            )  # fmt: skip
        if decision.accepted:
            return
        if decision.reason == "trust_unknown":
            retry = 60  # the registry could not be asked; nothing speaks against the peer
        rejection = knocks.reject(
            self.me.identity, own=self.me.name, knock=knock, reason=decision.reason, retry_after_s=retry,
            at_ms=int(now * 1000),
        )  # fmt: skip
        raise KnockRefusedError(
            decision.reason,
            f"{knock.sender} may not start a session: {decision.reason}",
            retry_after_s=retry,
            peer=knock.sender,
            rejection=bytes((REJECTION,)) + rejection,
        )

    def _room(self, now: float) -> bool:
        """Tell whether one more KNOCK can be remembered; forgets those that no kept key fits any more."""
        if self._store.count(_SEEN) < MAX_REMEMBERED_KNOCKS:
            return True
        if now < self._sweep_at:
            return False
        self._sweep_at = now + _SWEEP_EVERY_S
        seen = self._store.items(_SEEN)
        old = [name for name, until in seen if int.from_bytes(until, "big") < now]
        with self._store.transaction():
            for name in old:
                self._store.delete(_SEEN, name)
        return len(seen) - len(old) < MAX_REMEMBERED_KNOCKS

    def _rejected(self, data: bytes, sender: str | None) -> Rejected:
        if sender is None:
            raise MalformedError("rejection_sealed", "a rejection names its sender")
        peer = peer_name(sender)
        for session in self.of(peer):
            rejection = knocks.read_rejection(data, own=self.me.name, peer=peer, peer_key=session.peer_key)
            if session.session_id == rejection.knock_id and not session.answered:
                known = self._peer(peer)
                known.sessions.remove(session.session_id)
                with self._store.transaction():
                    self._store.delete(_SESSION, session.session_id)
                    self._store.put(_PEER, peer.encode(), known.dump())
                self._cache.pop(session.session_id, None)
                return Rejected(peer=peer, reason=rejection.reason, retry_after_s=rejection.retry_after_s)
        raise ReplayedError("rejection_of_nothing", "the rejection answers no KNOCK that waits")

    def _remember(self, session: Session, known: _Peer) -> None:
        """Enter a new session beside those there are; where both knocked at once, the smaller id leads."""
        others = [each for id_ in known.sessions if (each := self._load(id_)) is not None]
        self._cache[session.session_id] = session
        if session.initiator:
            place = len(others) if any(each.answered for each in others) else 0
        else:
            leads = bool(others) and not others[0].answered and others[0].session_id < session.session_id
            place = 1 if leads else 0
        known.sessions = [each.session_id for each in others]
        known.sessions.insert(place, session.session_id)
        while len(known.sessions) > KEPT_SESSIONS:
            silent = next(id_ for id_ in reversed(known.sessions) if id_ != session.session_id)
            known.sessions.remove(silent)
            self._store.delete(_SESSION, silent)
            self._cache.pop(silent, None)
        self._store.put(_PEER, session.peer.encode(), known.dump())

    @contextlib.contextmanager
    def _moving(self, session: Session) -> Iterator[None]:
        """Persist a session that is moved inside; drop it from memory when that, or the move, fails.

        A message that does not authenticate leaves a session as it was: forging one must not cost a read
        from disk, so the session stays in memory then.
        """
        try:
            with self._store.transaction():
                yield
                self._store.put(_SESSION, session.session_id, session.dump())
        except (ForgedError, ReplayedError, CloneSuspectedError, SkippedTooFarError):
            raise
        except BaseException:
            self._cache.pop(session.session_id, None)
            raise

    def _load(self, session_id: bytes) -> Session | None:
        session = self._cache.get(session_id)
        if session is None:
            record = self._store.get(_SESSION, session_id)
            if record is None:
                return None
            session = self._cache[session_id] = Session.load(record)
        return session

    def _peer(self, peer: PeerName) -> _Peer:
        return _Peer.load(self._store.get(_PEER, peer.encode()))


def _until(now: float) -> bytes:
    return int(now + ROTATE_AFTER_S + KEEP_AFTER_ROTATION_S + knocks.MAX_AGE_S).to_bytes(8, "big")
