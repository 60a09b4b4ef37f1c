"""The registry's rules in one place: who may see, take and say what, under the policy in force.

A peer that policy does not relate to the caller is answered exactly like one that does not exist.
"""

import time
from collections.abc import Callable, Sequence

from kars.mesh.v1 import registry_pb2, relay_pb2
from kars_common.errors import NotFoundError, PermissionDeniedError
from kars_common.spiffe import SpiffeId

from kars_relay.identity import Statement
from kars_relay.mailbox import MailboxStore
from kars_relay.policy import MeshPolicy, Rules
from kars_relay.recorder import Recorder
from kars_relay.registry.directory import Directory, Registered
from kars_relay.registry.prekeys import Counts, Prekeys
from kars_relay.registry.reputation import Reputations, Standing
from kars_relay.routing import Hub
from kars_relay.transparency import RegistrationLog

_RECENT_S = 3600.0
_PAGE = 500
_MAX_LOOKED_AT = 20_000


class RegistryDesk:
    """Serves one trust domain's registry."""

    def __init__(
        self,
        *,
        policy: MeshPolicy,
        directory: Directory,
        prekeys: Prekeys,
        reputations: Reputations,
        log: RegistrationLog,
        store: MailboxStore,
        hub: Hub,
        recorder: Recorder,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._directory = directory
        self._prekeys = prekeys
        self._reputations = reputations
        self._log = log
        self._store = store
        self._hub = hub
        self._recorder = recorder
        self._clock_s = clock_s

    async def register(
        self, statement: Statement, capabilities: Sequence[str], *, presence_visible: bool
    ) -> registry_pb2.Registration:
        """Enter a peer and give it a mailbox; see `Directory.register`."""
        held = await self._directory.register(statement, capabilities, presence_visible=presence_visible)
        await self._store.ensure(held.peer, statement.serial)
        await self._recorder.durable_event(
            "mesh.registered", peer=held.peer, serial=statement.serial, log_index=held.log_index
        )
        return self._message(held)

    async def rotate(self, statement: Statement, continuity_proof: bytes) -> registry_pb2.Registration:
        """Replace a peer's key and end the connection of the old one; see `Directory.rotate`."""
        held = await self._directory.rotate(statement, continuity_proof)
        await self._store.ensure(held.peer, statement.serial)
        self._hub.end(
            held.peer, PermissionDeniedError("identity_superseded", "the identity key was replaced")
        )
        await self._recorder.durable_event(
            "mesh.rotated", peer=held.peer, serial=statement.serial, continuous=held.continuous
        )
        return self._message(held)

    async def deregister(self, peer: SpiffeId) -> None:
        """Remove a peer with its prekeys, its mailbox and its connection."""
        self._policy.require()
        name = str(peer)
        self._hub.end(name, PermissionDeniedError("peer_deregistered", "the peer left the mesh"))
        await self._directory.deregister(name)
        await self._store.remove(name)
        await self._recorder.durable_event("mesh.deregistered", peer=name)

    async def lookup(self, caller: SpiffeId, peer: SpiffeId) -> registry_pb2.LookupResponse:
        """Return what is known about a peer that policy relates to the caller.

        Raises:
            NotFoundError: `peer_not_found`.
        """
        rules = self._policy.require()
        held = await self._related(rules, caller, peer)
        towards = rules.edge(caller, peer)
        standing = await self._reputations.standing(rules, peer)
        return registry_pb2.LookupResponse(
            registration=self._message(held),
            may_write=towards is not None,
            may_receive=rules.edge(peer, caller) is not None,
            edge_score=towards.score if towards else 0,
            reputation=_reputation(standing),
        )

    async def publish(self, peer: SpiffeId, request: registry_pb2.PublishPrekeysRequest) -> Counts:
        """Add a peer's prekeys; see `Prekeys.publish`.

        Raises:
            NotFoundError: `peer_not_found`, it is not registered.
        """
        self._policy.require()
        held = await self._directory.find(str(peer))
        if held is None:
            raise NotFoundError("peer_not_found", "register before publishing prekeys")
        return await self._prekeys.publish(held.peer, held.identity_key, request)

    async def counts(self, peer: SpiffeId) -> Counts:
        """Return how many prekeys of a peer are left."""
        self._policy.require()
        return await self._prekeys.counts(str(peer))

    async def take(self, caller: SpiffeId, peer: SpiffeId) -> registry_pb2.TakePrekeysResponse:
        """Hand out a bundle to a caller that may write to the peer; see `Prekeys.take`.

        Raises:
            NotFoundError: `peer_not_found`.
        """
        rules = self._policy.require()
        held = await self._directory.find(str(peer))
        if held is None or rules.edge(caller, peer) is None:
            self._recorder.refused("mesh.prekeys_refused", "peer_not_found", str(caller), str(peer))
            raise _not_found(peer)
        try:
            taken = await self._prekeys.take(str(caller), held.peer)
        except Exception as error:
            reason = getattr(error, "reason", "internal")
            self._recorder.refused("mesh.prekeys_refused", reason, str(caller), held.peer)
            raise
        low = self._prekeys.limits.low_water
        if taken.one_time is not None and taken.left.one_time < low:
            self._recorder.refused("mesh.prekeys_low", "prekeys_low", held.peer)
            self._hub.notify(held.peer, _prekeys_low(taken.left))
        return registry_pb2.TakePrekeysResponse(
            registration=self._message(held),
            signed_prekey=taken.signed,
            one_time_prekey=taken.one_time,
            kem_prekey=taken.kem,
            kem_is_last_resort=taken.kem_is_last_resort,
        )

    async def discover(
        self, caller: SpiffeId, capability: str, after: str, limit: int
    ) -> list[registry_pb2.DiscoveredPeer]:
        """Return peers that the caller may write to, in order of name."""
        rules = self._policy.require()
        found: list[registry_pb2.DiscoveredPeer] = []
        looked_at = 0
        while len(found) < limit and looked_at < _MAX_LOOKED_AT:
            page = await self._directory.page(after, _PAGE)
            if not page:
                break
            looked_at, after = looked_at + len(page), page[-1].peer
            for held in page:
                if len(found) < limit and (not capability or capability in held.capabilities):
                    await self._add_found(rules, caller, held, found)
        return found

    async def presence(self, caller: SpiffeId, peer: SpiffeId) -> registry_pb2.Presence.ValueType:
        """Tell, coarsely, whether a related peer is there.

        Raises:
            NotFoundError: `peer_not_found`.
        """
        held = await self._related(self._policy.require(), caller, peer)
        if not held.presence_visible:
            return registry_pb2.PRESENCE_UNSPECIFIED
        if self._hub.attached(held.peer):
            return registry_pb2.PRESENCE_ATTACHED
        left_at_s = self._hub.left_at_s(held.peer)
        if left_at_s is not None and self._clock_s() - left_at_s < _RECENT_S:
            return registry_pb2.PRESENCE_RECENT
        return registry_pb2.PRESENCE_AWAY

    async def rate(self, rater: SpiffeId, peer: SpiffeId, score: int) -> Standing:
        """Record a rating; see `Reputations.rate`."""
        rules = self._policy.require()
        await self._related(rules, rater, peer)
        return await self._reputations.rate(rules, rater, peer, score)

    async def _related(self, rules: Rules, caller: SpiffeId, peer: SpiffeId) -> Registered:
        held = await self._directory.find(str(peer))
        if held is None or not rules.related(caller, peer):
            raise _not_found(peer)
        return held

    async def _add_found(
        self, rules: Rules, caller: SpiffeId, held: Registered, found: list[registry_pb2.DiscoveredPeer]
    ) -> None:
        peer = SpiffeId.parse(held.peer)
        if rules.edge(caller, peer) is None:
            return
        standing = await self._reputations.standing(rules, peer)
        found.append(
            registry_pb2.DiscoveredPeer(
                peer=held.peer, capabilities=held.capabilities, reputation=_reputation(standing)
            )
        )

    def _message(self, held: Registered) -> registry_pb2.Registration:
        message = registry_pb2.Registration(
            identity=held.signed,
            capabilities=held.capabilities,
            continuous=held.continuous,
            log_entry=registry_pb2.LogEntry(index=held.log_index, record=self._log.record(held.log_index)),
        )
        message.registered_at.FromMicroseconds(int(held.registered_at_s * 1_000_000))
        return message


def _reputation(standing: Standing) -> registry_pb2.Reputation:
    return registry_pb2.Reputation(score=standing.score, raters=standing.raters)


def _prekeys_low(left: Counts) -> relay_pb2.Notice:
    low = relay_pb2.PrekeysLow(one_time_left=left.one_time, one_time_kem_left=left.one_time_kem)
    return relay_pb2.Notice(prekeys_low=low)


def _not_found(peer: SpiffeId) -> NotFoundError:
    return NotFoundError("peer_not_found", f"no peer {peer} that the caller is related to")
