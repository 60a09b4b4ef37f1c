"""The Registry service."""

from typing import Any

from kars.mesh.v1 import identity_pb2, registry_pb2, registry_pb2_grpc
from kars_common.errors import KarsError, PermissionDeniedError
from kars_common.rpc import caller
from kars_common.spiffe import SpiffeId

from kars_relay.federation import ForeignRegistries
from kars_relay.identity import Statement, verify_statement
from kars_relay.policy import MeshPolicy
from kars_relay.recorder import Recorder
from kars_relay.registry.desk import RegistryDesk
from kars_relay.transparency import RegistrationLog

Context = Any


class RegistryServicer(registry_pb2_grpc.RegistryServicer):
    """Answers for the peers of this trust domain, and asks elsewhere for those of others."""

    def __init__(
        self,
        policy: MeshPolicy,
        desk: RegistryDesk,
        log: RegistrationLog,
        foreign: ForeignRegistries,
        recorder: Recorder,
    ) -> None:
        self._policy = policy
        self._desk = desk
        self._log = log
        self._foreign = foreign
        self._recorder = recorder

    async def Register(  # noqa: N802 - named by the contract
        self, request: registry_pb2.RegisterRequest, context: Context
    ) -> registry_pb2.RegisterResponse:
        """Enter the caller."""
        peer = caller(context)
        try:
            statement = self._own_statement(peer, request.identity)
            registration = await self._desk.register(
                statement, request.capabilities, presence_visible=request.presence_visible
            )
        except KarsError as error:
            self._recorder.refused("mesh.registration_refused", error.reason, str(peer))
            raise
        return registry_pb2.RegisterResponse(registration=registration)

    async def Rotate(  # noqa: N802 - named by the contract
        self, request: registry_pb2.RotateRequest, context: Context
    ) -> registry_pb2.RotateResponse:
        """Replace the caller's key."""
        peer = caller(context)
        try:
            statement = self._own_statement(peer, request.identity)
            registration = await self._desk.rotate(statement, request.continuity_proof)
        except KarsError as error:
            self._recorder.refused("mesh.rotation_refused", error.reason, str(peer))
            raise
        return registry_pb2.RotateResponse(registration=registration)

    async def Deregister(  # noqa: N802 - named by the contract
        self, _request: registry_pb2.DeregisterRequest, context: Context
    ) -> registry_pb2.DeregisterResponse:
        """Remove the caller."""
        await self._desk.deregister(caller(context))
        return registry_pb2.DeregisterResponse()

    async def Lookup(  # noqa: N802 - named by the contract
        self, request: registry_pb2.LookupRequest, context: Context
    ) -> registry_pb2.LookupResponse:
        """Return what is known about a related peer."""
        peer, wanted = caller(context), SpiffeId.parse(request.peer)
        if wanted.trust_domain != self._policy.trust_domain:
            return await self._foreign.lookup(peer, wanted)
        return await self._desk.lookup(peer, wanted)

    async def PublishPrekeys(  # noqa: N802 - named by the contract
        self, request: registry_pb2.PublishPrekeysRequest, context: Context
    ) -> registry_pb2.PublishPrekeysResponse:
        """Add keys of the caller."""
        peer = caller(context)
        try:
            counts = await self._desk.publish(peer, request)
        except KarsError as error:
            self._recorder.refused("mesh.prekeys_refused", error.reason, str(peer))
            raise
        return registry_pb2.PublishPrekeysResponse(
            one_time_left=counts.one_time, one_time_kem_left=counts.one_time_kem
        )

    async def TakePrekeys(  # noqa: N802 - named by the contract
        self, request: registry_pb2.TakePrekeysRequest, context: Context
    ) -> registry_pb2.TakePrekeysResponse:
        """Hand out what starts a session."""
        peer, wanted = caller(context), SpiffeId.parse(request.peer)
        if wanted.trust_domain != self._policy.trust_domain:
            return await self._foreign.take(peer, wanted)
        return await self._desk.take(peer, wanted)

    async def GetPrekeyCounts(  # noqa: N802 - named by the contract
        self, _request: registry_pb2.GetPrekeyCountsRequest, context: Context
    ) -> registry_pb2.GetPrekeyCountsResponse:
        """Tell the caller what is left of its keys."""
        counts = await self._desk.counts(caller(context))
        return registry_pb2.GetPrekeyCountsResponse(
            one_time_left=counts.one_time,
            one_time_kem_left=counts.one_time_kem,
            signed_prekey_id=counts.signed_prekey_id,
        )

    async def Discover(  # noqa: N802 - named by the contract
        self, request: registry_pb2.DiscoverRequest, context: Context
    ) -> registry_pb2.DiscoverResponse:
        """List whom the caller may write to."""
        limit = min(max(request.page_size or 50, 1), 200)
        peers = await self._desk.discover(caller(context), request.capability, request.after, limit)
        return registry_pb2.DiscoverResponse(peers=peers)

    async def GetPresence(  # noqa: N802 - named by the contract
        self, request: registry_pb2.GetPresenceRequest, context: Context
    ) -> registry_pb2.GetPresenceResponse:
        """Tell whether a related peer is there."""
        presence = await self._desk.presence(caller(context), SpiffeId.parse(request.peer))
        return registry_pb2.GetPresenceResponse(presence=presence)

    async def RatePeer(  # noqa: N802 - named by the contract
        self, request: registry_pb2.RatePeerRequest, context: Context
    ) -> registry_pb2.RatePeerResponse:
        """Record how a session went."""
        rater = caller(context)
        try:
            standing = await self._desk.rate(rater, SpiffeId.parse(request.peer), request.score)
        except PermissionDeniedError as error:
            self._recorder.refused("mesh.rating_refused", error.reason, str(rater), request.peer)
            raise
        return registry_pb2.RatePeerResponse(
            reputation=registry_pb2.Reputation(score=standing.score, raters=standing.raters)
        )

    async def GetTreeHead(  # noqa: N802 - named by the contract
        self, _request: registry_pb2.GetTreeHeadRequest, _context: Context
    ) -> registry_pb2.GetTreeHeadResponse:
        """Return the newest signed head."""
        return registry_pb2.GetTreeHeadResponse(
            signed_note=self._log.head(), verifier_key=self._log.verifier_key
        )

    async def GetInclusionProof(  # noqa: N802 - named by the contract
        self, request: registry_pb2.GetInclusionProofRequest, _context: Context
    ) -> registry_pb2.GetInclusionProofResponse:
        """Prove that a registration is in the log."""
        size, hashes = self._log.inclusion(request.index, request.tree_size)
        return registry_pb2.GetInclusionProofResponse(
            tree_size=size, hashes=hashes, record=self._log.record(request.index)
        )

    async def GetConsistencyProof(  # noqa: N802 - named by the contract
        self, request: registry_pb2.GetConsistencyProofRequest, _context: Context
    ) -> registry_pb2.GetConsistencyProofResponse:
        """Prove that the log only grew."""
        size, hashes = self._log.consistency(request.old_size, request.new_size)
        return registry_pb2.GetConsistencyProofResponse(new_size=size, hashes=hashes)

    def _own_statement(self, peer: SpiffeId, signed: identity_pb2.SignedStatement) -> Statement:
        statement = verify_statement(signed, self._policy.require().statement_keys)
        if statement.peer != peer:
            raise PermissionDeniedError("peer_mismatch", "the identity statement is about another peer")
        return statement
