"""A router between an agent over HTTP and a relay and a controller over mTLS, all driven by the test."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.mesh.v1 import relay_pb2
from kars_common.testing import MemoryAuthority

from kars_router_testkit.controller import FakeController
from kars_router_testkit.mesh_agent import MeshAgent
from kars_router_testkit.policies import bundle, mesh_access
from kars_router_testkit.provider import FakeProvider
from kars_router_testkit.relay import FakeRelay
from kars_router_testkit.router import RouterProcess

OWN = "spiffe://kars.local/ns/team/sandbox/agent"
FRIEND = "spiffe://kars.local/ns/team/sandbox/friend"
OTHER = "spiffe://kars.local/ns/team/sandbox/other"
STRANGER = "spiffe://kars.local/ns/evil/sandbox/stranger"
WAIT_S = 10


class MeshBench:
    """A router with its neighbours."""

    def __init__(self, controller: FakeController, relay: FakeRelay, router: RouterProcess) -> None:
        self.controller, self.relay, self.router = controller, relay, router
        self.agent = MeshAgent(router)

    async def attach(self) -> None:
        """Let the agent open and connect."""
        await asyncio.to_thread(self.agent.attach)

    async def send(self, *runs: tuple[str, list[bytes]]) -> Any:  # noqa: ANN401 - an HttpAnswer
        """Submit payloads."""
        return await asyncio.to_thread(self.agent.send, *runs)

    async def next(self) -> relay_pb2.AttachResponse | None:
        """Wait for the next frame of the agent's `deliver`."""
        return await asyncio.to_thread(self.agent.next)

    async def enforce(self, document: Any) -> None:  # noqa: ANN401 - a PolicyBundle
        """Bring a policy into force."""
        while not self.controller.heard.empty():
            self.controller.heard.get_nowait()
        self.controller.publish(document)
        async with asyncio.timeout(WAIT_S):
            while (await self.controller.heard.get()).ack.version != document.version:
                pass

    def payloads(self) -> list[bytes]:
        """Return what the relay got."""
        return [e.payload for frame in self.relay.heard for s in frame.submissions for e in s.envelopes]


@pytest.fixture
async def mesh_bench(provider: FakeProvider, tmp_path: Path) -> AsyncIterator[MeshBench]:
    """A router whose agent has two peers; nobody is attached yet."""
    authority = MemoryAuthority()
    controller = FakeController(authority, Ed25519PrivateKey.generate())  # type: ignore[abstract]  # serves a part
    relay = FakeRelay(authority)  # type: ignore[abstract]  # serves a part
    await controller.start()
    await relay.start()
    router = RouterProcess(
        directory=tmp_path,
        providers=[("main", provider.base_url)],
        policy=bundle(mesh=mesh_access(relay.endpoint, both=[FRIEND, OTHER])),
        signer=controller.signer,
        env=controller.write_files(tmp_path / "identity"),
    )
    router.prepare()
    await asyncio.to_thread(router.start)
    found = MeshBench(controller, relay, router)
    yield found
    await asyncio.to_thread(found.agent.hang_up)
    await asyncio.to_thread(router.stop)
    await relay.stop()
    await controller.stop()
