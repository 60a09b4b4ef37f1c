"""The MeshIdentity service: statements for sandboxes about themselves, public keys for everybody."""

from typing import Any

from kars.mesh.v1 import identity_pb2, identity_pb2_grpc
from kars_common.rpc import caller

from kars_controller.mesh import StatementIssuer

Context = Any


class MeshIdentityServicer(identity_pb2_grpc.MeshIdentityServicer):
    """Serves identity statements; whose, the caller's certificate says."""

    def __init__(self, issuer: StatementIssuer) -> None:
        self._issuer = issuer

    async def IssueStatement(  # noqa: N802 - named by the contract
        self, request: identity_pb2.IssueStatementRequest, context: Context
    ) -> identity_pb2.IssueStatementResponse:
        """Bind an identity key to the caller."""
        signed = await self._issuer.issue(caller(context), request.identity_key, request.possession_proof)
        return identity_pb2.IssueStatementResponse(statement=signed)

    async def GetStatementKeys(  # noqa: N802 - named by the contract
        self, _request: identity_pb2.GetStatementKeysRequest, _context: Context
    ) -> identity_pb2.GetStatementKeysResponse:
        """Return the keys that statements are signed with."""
        return identity_pb2.GetStatementKeysResponse(keys=self._issuer.keys.messages())
