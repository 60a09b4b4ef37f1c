"""A controller as the router sees it: policy, approvals and witness over mTLS, driven by the test."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.audit.v1 import audit_pb2_grpc
from kars.governance.v1 import governance_pb2, governance_pb2_grpc
from kars.mesh.v1 import identity_pb2, identity_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.audit import AuditWitnessServicer, MemoryWitnessStore, Witness, verifier_key
from kars_common.errors import UnauthenticatedError
from kars_common.policy import canonical_payload, sign
from kars_common.rpc import AuthorizationTable, RpcServer, caller
from kars_common.testing import MemoryAuthority, StaticSvidSource

OPERATOR = "spiffe://kars.local/operator/ann"
SANDBOXES = "ns/*/sandbox/*"


class FakeController(
    policy_pb2_grpc.PolicyDiscoveryServicer,
    governance_pb2_grpc.ApprovalsServicer,
    identity_pb2_grpc.MeshIdentityServicer,
):
    """Serves one router; what it hears is in queues."""

    def __init__(self, authority: MemoryAuthority, signer: Ed25519PrivateKey) -> None:
        self.authority = authority
        self.signer = signer
        self.endpoint = ""
        self.heard: asyncio.Queue[policy_pb2.WatchRequest] = asyncio.Queue()
        self.to_send: asyncio.Queue[policy_pb2.SignedBundle] = asyncio.Queue()
        self.holds: asyncio.Queue[governance_pb2.AttachRequest] = asyncio.Queue()
        self.decisions: asyncio.Queue[governance_pb2.Approval] = asyncio.Queue()
        self.witness = Witness("kars.local/witness", Ed25519PrivateKey.generate(), MemoryWitnessStore())
        self._server: RpcServer | None = None

    async def start(self, address: str = "127.0.0.1:0") -> None:
        """Serve on an address; by default on a free port."""
        table = AuthorizationTable(
            {
                "kars.policy.v1.PolicyDiscovery/Watch": [SANDBOXES],
                "kars.governance.v1.Approvals/Attach": [SANDBOXES],
                "kars.audit.v1.AuditWitness/WitnessCheckpoint": [SANDBOXES],
                "kars.mesh.v1.MeshIdentity/IssueStatement": [SANDBOXES],
                "kars.mesh.v1.MeshIdentity/GetStatementKeys": [SANDBOXES],
            }
        )
        server = RpcServer(StaticSvidSource(self.authority.service("controller")), table, address)
        server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, self)
        server.add(governance_pb2_grpc.add_ApprovalsServicer_to_server, self)
        witness = AuditWitnessServicer(self.witness, lambda context: str(caller(context)))
        server.add(identity_pb2_grpc.add_MeshIdentityServicer_to_server, self)
        server.add(audit_pb2_grpc.add_AuditWitnessServicer_to_server, witness)
        self.endpoint = f"127.0.0.1:{await server.start()}"
        self._server = server

    async def stop(self) -> None:
        """Go away."""
        if self._server is not None:
            await self._server.stop(0)

    def publish(self, document: policy_pb2.PolicyBundle) -> None:
        """Send a bundle to the router."""
        self.to_send.put_nowait(sign(canonical_payload(document), self.signer))

    def write_files(self, directory: Path) -> dict[str, str]:
        """Write what a router needs to reach this controller; returns its settings."""
        svid = self.authority.sandbox("team", "agent")
        directory.mkdir(parents=True, exist_ok=True)
        parts = {
            "tls.crt": svid.certificate_chain_pem,
            "tls.key": svid.private_key_pem,
            "ca.crt": svid.trust_bundle_pem,
            "witness": verifier_key(self.witness.name, self.witness.public_key, witness=True).encode(),
        }
        for name, content in parts.items():
            path = directory / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        return {
            "SVID_DIR": str(directory),
            "CONTROLLER_ENDPOINT": self.endpoint,
            "WITNESS_KEY_FILE": str(directory / "witness"),
        }

    async def Watch(  # noqa: N802 - named by the contract
        self,
        request_iterator: AsyncIterator[policy_pb2.WatchRequest],
        context: Any,  # noqa: ANN401, ARG002 - grpc's
    ) -> AsyncIterator[policy_pb2.WatchResponse]:
        """Send what the test publishes; note every message of the router."""
        reader = asyncio.create_task(self._note(request_iterator), name="read watch")
        try:
            while True:
                yield policy_pb2.WatchResponse(bundle=await self.to_send.get())
        finally:
            reader.cancel()

    async def Attach(  # noqa: N802 - named by the contract
        self,
        request_iterator: AsyncIterator[governance_pb2.AttachRequest],
        context: Any,  # noqa: ANN401, ARG002 - grpc's
    ) -> AsyncIterator[governance_pb2.AttachResponse]:
        """Note holds; send the test's decisions."""
        reader = asyncio.create_task(self._note_holds(request_iterator), name="read holds")
        try:
            while True:
                yield governance_pb2.AttachResponse(decided=await self.decisions.get())
        finally:
            reader.cancel()

    async def IssueStatement(  # noqa: N802 - named by the contract
        self,
        request: identity_pb2.IssueStatementRequest,
        context: Any,  # noqa: ANN401 - grpc's
    ) -> identity_pb2.IssueStatementResponse:
        """State the caller's name beside what it sent; no statement of the real form."""
        if not request.possession_proof:
            raise UnauthenticatedError("possession_proof_invalid", "no proof")
        text = str(caller(context)).encode() + b" " + request.identity_key
        return identity_pb2.IssueStatementResponse(statement=identity_pb2.SignedStatement(statement=text))

    async def _note(self, requests: AsyncIterator[policy_pb2.WatchRequest]) -> None:
        async for request in requests:
            self.heard.put_nowait(request)

    async def _note_holds(self, requests: AsyncIterator[governance_pb2.AttachRequest]) -> None:
        async for request in requests:
            self.holds.put_nowait(request)

    async def pending(self) -> governance_pb2.Approval:
        """Wait for the next hold."""
        while True:
            message = await self.holds.get()
            if message.WhichOneof("message") == "pending":
                return message.pending

    def decide(
        self, approval: governance_pb2.Approval, *, grant: bool, by: str = "spiffe://kars.local/operator/ann"
    ) -> None:
        """Decide a hold as a person would."""
        decided = governance_pb2.Approval()
        decided.CopyFrom(approval)
        decided.state = (
            governance_pb2.APPROVAL_STATE_GRANTED if grant else governance_pb2.APPROVAL_STATE_DENIED
        )
        decided.decided_by = by
        if grant:
            decided.granted_by.append(by)
        self.decisions.put_nowait(decided)
