"""The WorkloadIdentity service: on the bootstrap listener Attest only, on the main one the rest."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from kars.identity.v1 import identity_pb2, identity_pb2_grpc
from kars_common.errors import UnauthenticatedError
from kars_common.rpc import caller

from kars_controller.ca import IssuedCertificate
from kars_controller.identities import Identities

Context = Any


class WorkloadIdentityServicer(identity_pb2_grpc.WorkloadIdentityServicer):
    """Serves identities. Which method is open on which listener is the tables' business."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def Attest(  # noqa: N802 - named by the contract
        self, request: identity_pb2.AttestRequest, _context: Context
    ) -> identity_pb2.AttestResponse:
        """Exchange a proof for the first SVID."""
        if request.WhichOneof("attestation") != "join_token":
            raise UnauthenticatedError("attestation_failed", "this platform takes join tokens only")
        issued = await self._identities.attest(request.join_token, request.csr_pem)
        return identity_pb2.AttestResponse(svid=self._svid(issued))

    async def Renew(  # noqa: N802 - named by the contract
        self, request: identity_pb2.RenewRequest, context: Context
    ) -> identity_pb2.RenewResponse:
        """Issue a fresh SVID to the caller, for itself."""
        issued = await self._identities.renew(caller(context), request.csr_pem)
        return identity_pb2.RenewResponse(svid=self._svid(issued))

    async def GetTrustBundle(  # noqa: N802 - named by the contract
        self, _request: identity_pb2.GetTrustBundleRequest, _context: Context
    ) -> identity_pb2.GetTrustBundleResponse:
        """Return the roots."""
        return identity_pb2.GetTrustBundleResponse(trust_bundle_pem=self._identities.trust_bundle_pem)

    def _svid(self, issued: IssuedCertificate) -> identity_pb2.Svid:
        expires_at = Timestamp()
        expires_at.FromDatetime(issued.expires_at)
        return identity_pb2.Svid(
            spiffe_id=str(issued.spiffe_id),
            certificate_chain_pem=issued.chain_pem,
            trust_bundle_pem=self._identities.trust_bundle_pem,
            expires_at=expires_at,
        )
