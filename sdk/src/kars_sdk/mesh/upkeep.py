"""Belonging to the mesh: identity, statement, registration and prekeys, kept fresh.

The identity key is made once, on first start, and lives in the sealed store. The controller states what name
it belongs to; the registry gets the statement and enough one-time keys. All of it is repeated safely.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.directory import Directory, PrekeyCounts
from kars_sdk.mesh.errors import IdentityError, TransportError
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.prekeys import Bundle, Prekeys, Publication
from kars_sdk.mesh.sessions import Me, Sessions
from kars_sdk.mesh.statements import MAX_STATEMENT_BYTES, SignedStatement, Statement, TrustKeys
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.transparency import RegistrationLog
from kars_sdk.mesh.trust import TrustPolicy

LOW_ONE_TIME, FULL_ONE_TIME = 20, 60
LOW_KEM, FULL_KEM = 8, 24
_CHECK_EVERY_S = 600.0
_REFRESH_EVERY_S = 6 * 3600.0
_REPUTATION_FOR_S = 300.0
_POLICY_EVERY_S = 30.0
_SELF = "self"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What we tell the mesh about ourselves."""

    capabilities: tuple[str, ...] = ()
    presence_visible: bool = True


class Membership:
    """Who we are, and that the mesh knows."""

    def __init__(
        self,
        *,
        name: PeerName,
        store: Store,
        directory: Directory,
        trust: Callable[[], TrustKeys],
        policy: Callable[[], Awaitable[TrustPolicy]],
        profile: Profile = Profile(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take up the identity in the store, or make one.

        `trust` is asked again when a statement's signer is not known: the mounted file may be a new one.
        `policy` is asked at each attachment and every half minute; until it has answered, nobody is let in.
        """
        self.name = name
        self.store = store
        self.directory = directory
        self.identity = _identity(store)
        self.profile = profile
        self.log = RegistrationLog(directory.registry, store, name)
        self._trust = trust
        self._policy = policy
        self._policy_at = 0.0
        self._clock = clock
        self._published = 0.0
        self._checked = 0.0
        self._reputation: dict[PeerName, tuple[float, int]] = {}
        self._prekeys = Prekeys(store, self.identity, clock=clock)
        me = Me(name=name, identity=self.identity, statement=_statement(store), trust=trust())
        self.sessions = Sessions(
            me, store, self._prekeys, TrustPolicy(), clock=clock, reputation=self._known_reputation
        )

    @property
    def statement(self) -> SignedStatement:
        """The statement that peers get from us."""
        return self.sessions.me.statement

    async def ready(self) -> None:
        """Have a statement, be registered, have prekeys out; then an attachment makes sense.

        Raises:
            TransportError: registry or controller could not be asked.
            IdentityError: the controller's statement is not one that we would believe ourselves.
        """
        await self._renew_statement()
        await self._renew_policy()
        now = self._clock()
        if now - self._published >= _REFRESH_EVERY_S:
            await self.directory.register(
                self.statement, list(self.profile.capabilities), visible=self.profile.presence_visible
            )
            await self._fill(await self.directory.publish(self._prekeys.renew()))
            self._published = self._checked = now

    async def keep_up(self) -> None:
        """Do what is due; a registry that does not answer is asked again later."""
        now = self._clock()
        try:
            if now - self._policy_at >= _POLICY_EVERY_S:
                await self._renew_policy()
            if now - self._checked < _CHECK_EVERY_S:
                return
            self._checked = now
            await self.ready()
            await self._fill(await self.directory.counts())
        except TransportError:
            self._checked = now - _CHECK_EVERY_S + 30

    def prekeys_low(self) -> None:
        """Note that the relay said so."""
        self._checked = 0.0

    async def take_bundle(self, peer: PeerName) -> Bundle:
        """Take what starts a session with a peer, and check that the registry tells everybody the same.

        Raises:
            TransportError: the registry could not be asked.
            IdentityError: see `TrustKeys.verify` and `RegistrationLog.check`.
        """
        bundle, registration = await self.directory.take_bundle(peer)
        statement = self.sessions.me.trust.verify(bundle.identity, now=self._clock(), peer=peer)
        await self.log.check(registration, statement)
        return bundle

    async def learn_reputation(self, peer: PeerName) -> None:
        """Ask the registry about a peer, for decisions of the next minutes.

        Raises:
            TransportError: it could not be asked; nothing is known then.
        """
        self._reputation[peer] = (self._clock(), await self.directory.reputation(peer))

    def knows_reputation(self, peer: PeerName) -> bool:
        """Tell whether the registry was asked about a peer lately."""
        return self._known_reputation(peer) is not None

    def _known_reputation(self, peer: PeerName) -> int | None:
        at, score = self._reputation.get(peer, (0.0, 0))
        return score if self._clock() - at < _REPUTATION_FOR_S else None

    async def _renew_policy(self) -> None:
        self.sessions.policy = await self._policy()
        self._policy_at = self._clock()

    async def _renew_statement(self) -> None:
        now = self._clock()
        try:
            current = self._verified(self.statement)
            if now < (current.not_before + current.not_after) / 2:
                return
        except IdentityError:
            pass  # none yet, or no longer believed: ask for one
        statement = await self.directory.statement(self.identity, self.name)
        self._verified(statement)
        with self.store.transaction():
            record = Writer().variable(statement.statement).raw(statement.signature).text(statement.key_id)
            self.store.put(_SELF, b"statement", record.bytes())
        self.sessions.me = replace(self.sessions.me, statement=statement)
        self._published = 0.0

    def _verified(self, statement: SignedStatement) -> Statement:
        try:
            return self.sessions.me.trust.verify(
                statement, now=self._clock(), peer=self.name, key=self.identity.public
            )
        except IdentityError as exc:
            if exc.reason != "statement_signer_unknown":
                raise
        self.sessions.me = replace(self.sessions.me, trust=self._trust())
        return self.sessions.me.trust.verify(
            statement, now=self._clock(), peer=self.name, key=self.identity.public
        )

    async def _fill(self, counts: PrekeyCounts) -> None:
        one_time = FULL_ONE_TIME - counts.one_time if counts.one_time < LOW_ONE_TIME else 0
        kem = FULL_KEM - counts.one_time_kem if counts.one_time_kem < LOW_KEM else 0
        if one_time or kem:
            more = self._prekeys.more(one_time, kem)
            if more != Publication():
                await self.directory.publish(more)


def _identity(store: Store) -> IdentityKey:
    seed = store.get(_SELF, b"identity")
    if seed is not None:
        return IdentityKey(seed)
    identity = IdentityKey.generate()
    with store.transaction():
        store.put(_SELF, b"identity", identity.seed)
    return identity


def _statement(store: Store) -> SignedStatement:
    record = store.get(_SELF, b"statement")
    if record is None:
        return SignedStatement(statement=b"", signature=b"", key_id="")
    reader = Reader(record, what="statement record", max_bytes=MAX_STATEMENT_BYTES + 256)
    return SignedStatement(
        statement=reader.variable(MAX_STATEMENT_BYTES), signature=reader.raw(64), key_id=reader.text(64)
    )
