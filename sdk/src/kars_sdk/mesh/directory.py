"""The registry in this package's own values. It is asked, never believed: `bundles.verify` looks at all."""

from dataclasses import dataclass

from kars.mesh.v1 import identity_pb2, registry_pb2

from kars_sdk.mesh import primitives
from kars_sdk.mesh.errors import TransportError
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.prekeys import Bundle, KemPrekey, OneTimePrekey, Publication, SignedPrekey
from kars_sdk.mesh.statements import SignedStatement
from kars_sdk.mesh.transport import Registry

_MAX_PEERS = 200


@dataclass(frozen=True, kw_only=True)
class PeerInfo:
    """One peer of the roster."""

    peer: PeerName
    capabilities: tuple[str, ...]
    reputation: int


@dataclass(frozen=True, kw_only=True)
class PrekeyCounts:
    """How many of our one-time keys the registry still has."""

    one_time: int
    one_time_kem: int


class Directory:
    """Typed calls to a registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def statement(self, identity: IdentityKey, peer: PeerName) -> SignedStatement:
        """Ask the controller for a statement about our key."""
        answer = await self.registry.issue_statement(
            identity_pb2.IssueStatementRequest(
                identity_key=identity.public, possession_proof=identity.possession_proof(peer)
            )
        )
        return from_statement(answer.statement)

    async def register(self, statement: SignedStatement, capabilities: list[str], *, visible: bool) -> None:
        """Enter ourselves, or refresh the entry; a changed key is rotated."""
        request = registry_pb2.RegisterRequest(
            identity=to_statement(statement), capabilities=capabilities, presence_visible=visible
        )
        try:
            await self.registry.call("Register", request, registry_pb2.RegisterResponse)
        except TransportError as exc:
            if exc.reason != "key_change_needs_rotate":
                raise
            # The old key is gone with the old state: the registration shows the break to every peer.
            rotate = registry_pb2.RotateRequest(identity=to_statement(statement))
            await self.registry.call("Rotate", rotate, registry_pb2.RotateResponse)
            await self.registry.call("Register", request, registry_pb2.RegisterResponse)

    async def publish(self, publication: Publication) -> PrekeyCounts:
        """Publish prekeys."""
        request = registry_pb2.PublishPrekeysRequest(
            one_time_prekeys=[
                registry_pb2.OneTimePrekey(key_id=key.key_id, public_key=key.public_key)
                for key in publication.one_time_prekeys
            ],
            one_time_kem_prekeys=[_to_kem(key) for key in publication.one_time_kem_prekeys],
        )
        if publication.signed_prekey is not None:
            signed = publication.signed_prekey
            request.signed_prekey.MergeFrom(
                registry_pb2.SignedPrekey(
                    key_id=signed.key_id, public_key=signed.public_key, signature=signed.signature
                )
            )
        if publication.last_resort_kem_prekey is not None:
            request.last_resort_kem_prekey.MergeFrom(_to_kem(publication.last_resort_kem_prekey))
        answer = await self.registry.call("PublishPrekeys", request, registry_pb2.PublishPrekeysResponse)
        return PrekeyCounts(one_time=answer.one_time_left, one_time_kem=answer.one_time_kem_left)

    async def counts(self) -> PrekeyCounts:
        """Return how many one-time keys are left."""
        answer = await self.registry.call(
            "GetPrekeyCounts", registry_pb2.GetPrekeyCountsRequest(), registry_pb2.GetPrekeyCountsResponse
        )
        return PrekeyCounts(one_time=answer.one_time_left, one_time_kem=answer.one_time_kem_left)

    async def take_bundle(self, peer: PeerName) -> tuple[Bundle, registry_pb2.Registration]:
        """Take what starts a session with a peer, and what the registration log should say about it.

        Not idempotent: it may use up a one-time key.
        """
        answer = await self.registry.call(
            "TakePrekeys", registry_pb2.TakePrekeysRequest(peer=peer), registry_pb2.TakePrekeysResponse
        )
        one_time, kem, signed = answer.one_time_prekey, answer.kem_prekey, answer.signed_prekey
        bundle = Bundle(
            identity=from_statement(answer.registration.identity),
            signed_prekey=SignedPrekey(
                key_id=signed.key_id, public_key=signed.public_key, signature=signed.signature
            ),
            one_time_prekey=OneTimePrekey(key_id=one_time.key_id, public_key=one_time.public_key)
            if answer.HasField("one_time_prekey")
            else None,
            kem_prekey=KemPrekey(
                key_id=kem.key_id,
                algorithm=_ALGORITHMS.get(kem.algorithm, 0),
                public_key=kem.public_key,
                signature=kem.signature,
            )
            if answer.HasField("kem_prekey")
            else None,
            kem_is_last_resort=answer.kem_is_last_resort,
        )
        return bundle, answer.registration

    async def discover(self, capability: str = "") -> list[PeerInfo]:
        """Return the peers that we may write to and that offer a capability; empty for all."""
        answer = await self.registry.call(
            "Discover",
            registry_pb2.DiscoverRequest(capability=capability, page_size=_MAX_PEERS),
            registry_pb2.DiscoverResponse,
        )
        return [
            PeerInfo(
                peer=peer_name(each.peer),
                capabilities=tuple(each.capabilities),
                reputation=each.reputation.score,
            )
            for each in answer.peers[:_MAX_PEERS]
        ]

    async def reputation(self, peer: PeerName) -> int:
        """Return a peer's reputation, 0 to 1000."""
        answer = await self._lookup(peer)
        return answer.reputation.score

    async def presence(self, peer: PeerName) -> str:
        """Return `attached`, `recent`, `away`, or `unspecified` for a peer that does not say."""
        answer = await self.registry.call(
            "GetPresence", registry_pb2.GetPresenceRequest(peer=peer), registry_pb2.GetPresenceResponse
        )
        return registry_pb2.Presence.Name(answer.presence).removeprefix("PRESENCE_").lower()

    async def rate(self, peer: PeerName, score: int) -> None:
        """Say how a session with a peer went, 0 to 1000."""
        await self.registry.call(
            "RatePeer", registry_pb2.RatePeerRequest(peer=peer, score=score), registry_pb2.RatePeerResponse
        )

    async def _lookup(self, peer: PeerName) -> registry_pb2.LookupResponse:
        return await self.registry.call(
            "Lookup", registry_pb2.LookupRequest(peer=peer), registry_pb2.LookupResponse
        )


_ALGORITHMS: dict[int, int] = {
    registry_pb2.KEM_ALGORITHM_ML_KEM_768: primitives.KEM_768,
    registry_pb2.KEM_ALGORITHM_ML_KEM_1024: primitives.KEM_1024,
}


def to_statement(statement: SignedStatement) -> identity_pb2.SignedStatement:
    """Return a statement as the contract has it."""
    return identity_pb2.SignedStatement(
        statement=statement.statement, signature=statement.signature, key_id=statement.key_id
    )


def from_statement(message: identity_pb2.SignedStatement) -> SignedStatement:
    """Return a statement as it was received; nothing in it was checked."""
    return SignedStatement(statement=message.statement, signature=message.signature, key_id=message.key_id)


def _to_kem(key: KemPrekey) -> registry_pb2.KemPrekey:
    algorithm = registry_pb2.KemAlgorithm.Name(key.algorithm)  # type: ignore[arg-type]  # the numbers are the contract's
    return registry_pb2.KemPrekey(
        key_id=key.key_id,
        algorithm=registry_pb2.KemAlgorithm.Value(algorithm),
        public_key=key.public_key,
        signature=key.signature,
    )
