"""The README's service, run: attested, governed, called by the controller, stopped, started again."""

import asyncio
import importlib.util
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.identity.v1 import identity_pb2, identity_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common import files, policy
from kars_common.errors import UnauthenticatedError
from kars_common.rpc import ANY_IDENTITY, ANYONE, AuthorizationTable, PeerChannel, RpcServer
from kars_common.spiffe import SpiffeId
from kars_common.testing import MemoryAuthority, StaticSvidSource

HERE = Path(__file__).parent
KEY = Ed25519PrivateKey.generate()
BUNDLE = policy_pb2.PolicyBundle(sandbox=policy_pb2.SandboxRef(namespace="team", name="writer"), version=1)


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("example_service", HERE / "example_service.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Identities(identity_pb2_grpc.WorkloadIdentityServicer):
    """Knows one token, for one use."""

    def __init__(self, authority: MemoryAuthority) -> None:
        self.authority = authority
        self.tokens = {"t1"}

    async def Attest(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.join_token not in self.tokens:
            raise UnauthenticatedError("attestation_failed", "unknown token")
        self.tokens.remove(request.join_token)
        chain = self.authority.sign(
            request.csr_pem.encode(), SpiffeId.sandbox("kars.local", "team", "writer")
        )
        return identity_pb2.AttestResponse(
            svid=identity_pb2.Svid(
                certificate_chain_pem=chain.decode(),
                trust_bundle_pem=self.authority.trust_bundle_pem.decode(),
            )
        )

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def GetTrustBundle(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError


class Discovery(policy_pb2_grpc.PolicyDiscoveryServicer):
    """Hands out one bundle."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        requests = aiter(request_iterator)
        await anext(requests)
        yield policy_pb2.WatchResponse(bundle=policy.sign(policy.canonical_payload(BUNDLE), KEY))
        async for request in requests:
            assert request.ack.version == 1
            self.answered.set()

    async def GetSigningKeys(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError


class Enforcement(policy_pb2_grpc.PolicyEnforcementServicer):
    def __init__(self, watch: Any) -> None:
        self.watch = watch

    async def GetInForce(self, request: Any, context: Any) -> Any:  # noqa: N802
        state = self.watch.in_force
        return policy_pb2.GetInForceResponse(doors=[policy_pb2.InForce(version=state.version)])


async def test_service_attests_enforces_answers_stops_and_starts_again_without_a_token(
    tmp_path: Path,
) -> None:
    authority, discovery = MemoryAuthority(), Discovery()
    own = StaticSvidSource(authority.service("controller"))
    identities = Identities(authority)
    bootstrap = RpcServer.bootstrap(
        own, AuthorizationTable({"kars.identity.v1.WorkloadIdentity/Attest": [ANYONE]}), "127.0.0.1:0"
    ).add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, identities)
    main = RpcServer(
        own, AuthorizationTable({"kars.policy.v1.PolicyDiscovery/Watch": [ANY_IDENTITY]}), "127.0.0.1:0"
    ).add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, discovery)
    bootstrap_port, main_port = await bootstrap.start(), await main.start()
    files.replace(tmp_path / "trust.pem", authority.trust_bundle_pem)
    files.replace(tmp_path / "join-token", b"t1")
    files.replace(
        tmp_path / "keys.json", policy.dump_keys({policy.key_id(KEY.public_key()): KEY.public_key()})
    )
    example = load_example()
    for _ in range(2):
        discovery.answered.clear()
        stopping, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        service = asyncio.create_task(
            example.serve(
                directory=tmp_path,
                bootstrap_endpoint=f"127.0.0.1:{bootstrap_port}",
                controller_endpoint=f"127.0.0.1:{main_port}",
                apply=lambda _bundle, _payload: None,
                servicer_of=Enforcement,
                on_ready=ready.set_result,
                stopping=stopping,
            )
        )
        port = await asyncio.wait_for(ready, 10)
        await asyncio.wait_for(discovery.answered.wait(), 5)
        channel = PeerChannel(own, f"127.0.0.1:{port}", "writer.team.sandbox.kars.local")
        stub = channel.stub(policy_pb2_grpc.PolicyEnforcementStub)
        answer = await stub.GetInForce(policy_pb2.GetInForceRequest())
        assert [door.version for door in answer.doors] == [1]
        await channel.close()
        stopping.set()
        await asyncio.wait_for(service, 10)
    assert identities.tokens == set()
    await asyncio.gather(bootstrap.stop(0), main.stop(0))


def test_readme_shows_the_service_that_is_tested() -> None:
    text = (HERE / "example_service.py").read_text()
    shown = textwrap.dedent(text.split("    # [service]\n")[1].split("    # [/service]")[0])
    assert shown.strip() in (HERE.parent / "README.md").read_text()
