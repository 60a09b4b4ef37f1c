"""A whole controller behind real mTLS, with a platform in memory."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars_common.identity import Svid, create_csr
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.spiffe import SpiffeId
from kars_common.testing import StaticSvidSource
from kars_controller import testing
from kars_controller.app import Controller
from kars_controller.runtimes import InstalledRuntime, RuntimeCatalog
from kars_controller.settings import ControllerSettings

RUNTIMES = RuntimeCatalog(
    installed={"PydanticAi": InstalledRuntime(argv=("/v/bin/python",), bin_dir="/v/bin")}
)
Answer = TypeVar("Answer")


@dataclass
class Harness:
    """A running controller and clients of any identity."""

    controller: Controller
    platform: testing.FakePlatform
    channels: list[PeerChannel] = field(default_factory=list)

    def svid(self, identity: SpiffeId) -> Svid:
        key, csr = create_csr()
        issued = self.controller.authority.issue(csr.decode(), identity)
        return Svid.from_pem(
            chain=issued.chain_pem.encode(),
            private_key=key,
            trust_bundle=self.controller.authority.trust_bundle_pem.encode(),
        )

    def channel(self, svid: Svid, *, bootstrap: bool = False) -> PeerChannel:
        endpoint = self.controller.bootstrap_endpoint if bootstrap else self.controller.endpoint
        channel = PeerChannel(StaticSvidSource(svid), endpoint, "controller.svc.kars.local")
        self.channels.append(channel)
        return channel

    def operator(self, user: str = "ann") -> PeerChannel:
        return self.channel(self.svid(SpiffeId.operator("kars.local", user)))

    def router(self, name: str = "agent") -> PeerChannel:
        return self.channel(self.svid(SpiffeId.sandbox("kars.local", "default", name)))

    async def apply(self, *documents: dict[str, Any]) -> list[resource_pb2.ApplyResourceResponse]:
        stub = self.operator().stub(resource_pb2_grpc.ResourcesStub)
        with mapped_errors():
            return [
                await stub.ApplyResource(
                    resource_pb2.ApplyResourceRequest(document_json=json.dumps(document))
                )
                for document in documents
            ]

    async def until(
        self, check: Callable[[], Answer | None] | Callable[[], Awaitable[Answer | None]]
    ) -> Answer:
        """Wait until `check` returns something, at most 5 seconds."""
        async with asyncio.timeout(5):
            while True:
                found = check()
                value: Any = await found if isinstance(found, Awaitable) else found
                if value:
                    return value  # type: ignore[no-any-return]
                await asyncio.sleep(0.01)


def settings(tmp_path: Path) -> ControllerSettings:
    (tmp_path / "providers.json").write_text(
        json.dumps({"providers": [{"name": "openai", "baseUrl": "http://127.0.0.1:9/v1"}]})
    )
    return ControllerSettings(
        state_dir=tmp_path, drain_s=0.1, operator="ann", relay_endpoint="relay.example:7443"
    )


@contextlib.asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Harness]:
    platform = testing.FakePlatform()
    controller = Controller(settings(tmp_path), platform=platform, runtimes=RUNTIMES)
    harness, stopping = Harness(controller, platform), asyncio.Event()
    serving = asyncio.create_task(controller.serve(stopping))
    started = asyncio.create_task(controller.started.wait())
    try:
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert controller.started.is_set(), serving
        yield harness
    finally:
        started.cancel()
        for channel in harness.channels:
            await channel.close()
        stopping.set()
        await asyncio.wait_for(serving, 10)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with running(tmp_path) as found:
        yield found


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], contextlib.AbstractAsyncContextManager[Harness]]:
    """Start a controller on the same state again and again."""
    return lambda: running(tmp_path)
