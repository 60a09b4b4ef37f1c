"""Lookups and prekeys of peers elsewhere, asked of their own registry on behalf of one of ours.

Our policy is asked first: a pair that it does not relate is answered here, and the other side never hears
of it. What comes back is checked by the client, which knows the other domain's statement keys from policy.
"""

from kars.mesh.v1 import federation_pb2, registry_pb2
from kars_common.errors import NotFoundError
from kars_common.rpc import mapped_errors
from kars_common.spiffe import SpiffeId

from kars_relay.federation.channels import FederationChannels
from kars_relay.policy import FederatedDomain, MeshPolicy


class ForeignRegistries:
    """The registries of federated domains."""

    def __init__(self, policy: MeshPolicy, channels: FederationChannels) -> None:
        self._policy = policy
        self._channels = channels

    async def lookup(self, caller: SpiffeId, peer: SpiffeId) -> registry_pb2.LookupResponse:
        """Look a peer up where it lives.

        Raises:
            NotFoundError: `peer_not_found`.
            UnavailableError: the other side cannot be reached.
        """
        rules = self._policy.require()
        domain = self._domain(caller, peer, write_only=False)
        stub = await self._channels.stub(domain)
        request = federation_pb2.LookupForeignRequest(
            on_behalf_of=str(caller), lookup=registry_pb2.LookupRequest(peer=str(peer))
        )
        with mapped_errors():
            answer: registry_pb2.LookupResponse = (await stub.LookupForeign(request)).lookup
        towards = rules.edge(caller, peer)
        # What our policy says counts here, not what the other side says of it.
        answer.may_write = towards is not None and answer.may_write
        answer.may_receive = rules.edge(peer, caller) is not None and answer.may_receive
        answer.edge_score = towards.score if towards else 0
        return answer

    async def take(self, caller: SpiffeId, peer: SpiffeId) -> registry_pb2.TakePrekeysResponse:
        """Take prekeys of a peer where it lives.

        Raises:
            NotFoundError: `peer_not_found`.
            UnavailableError: the other side cannot be reached.
        """
        domain = self._domain(caller, peer, write_only=True)
        stub = await self._channels.stub(domain)
        request = federation_pb2.TakeForeignPrekeysRequest(
            on_behalf_of=str(caller), take=registry_pb2.TakePrekeysRequest(peer=str(peer))
        )
        with mapped_errors():
            taken: registry_pb2.TakePrekeysResponse = (await stub.TakeForeignPrekeys(request)).take
            return taken

    def _domain(self, caller: SpiffeId, peer: SpiffeId, *, write_only: bool) -> FederatedDomain:
        rules = self._policy.require()
        domain = rules.federated.get(peer.trust_domain)
        allowed = rules.edge(caller, peer) is not None if write_only else rules.related(caller, peer)
        if domain is None or not allowed:
            raise NotFoundError("peer_not_found", f"no peer {peer} that the caller is related to")
        return domain
