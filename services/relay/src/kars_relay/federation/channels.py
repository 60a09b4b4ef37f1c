"""One channel to each federated relay, opened when it is needed and closed when policy forgets it."""

from typing import Any

from kars.mesh.v1 import federation_pb2_grpc
from kars_common.errors import UnavailableError
from kars_common.rpc import PeerChannel
from kars_common.svid import SvidSource

from kars_relay.federation.trust import FederatedSource
from kars_relay.policy import FederatedDomain

TIMEOUT_S = 15.0


class FederationChannels:
    """Channels by trust domain."""

    def __init__(self, source: SvidSource) -> None:
        self._source = source
        self._held: dict[str, tuple[FederatedDomain, PeerChannel]] = {}

    async def stub(self, domain: FederatedDomain) -> Any:  # noqa: ANN401 - the async stub has a class in type stubs only
        """Return a stub of a domain's relay.

        Raises:
            UnavailableError: `federation_unreachable`, policy names no endpoint: that side calls us.
        """
        if not domain.endpoint:
            raise UnavailableError(
                "federation_unreachable", f"policy names no endpoint of {domain.trust_domain}"
            )
        held = self._held.get(domain.trust_domain)
        if held is None or held[0] != domain:
            if held is not None:
                await held[1].close()
            roots = domain.trust_bundle_pem
            channel = PeerChannel(
                FederatedSource(self._source, lambda: roots),
                domain.endpoint,
                domain.relay.dns_name,
                timeout_s=TIMEOUT_S,
            )
            self._held[domain.trust_domain] = held = (domain, channel)
        return held[1].stub(federation_pb2_grpc.FederationStub)

    async def close(self) -> None:
        """Close all."""
        for _, channel in self._held.values():
            await channel.close()
        self._held.clear()
