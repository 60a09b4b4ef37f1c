"""Carrying plans out: what is applied, with which token, and what happens when the platform says no."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.errors import FailedPreconditionError
from kars_controller import api_types, testing
from kars_controller.code_sources import CodeStore
from kars_controller.distribution import PolicyPublisher, PolicySessions
from kars_controller.platforms.base import SandboxKey
from kars_controller.providers import Providers
from kars_controller.reconcile.observing import Observer, Surroundings
from kars_controller.reconcile.plan import RouterMaterial
from kars_controller.reconcile.sandboxes import FINALIZER, JoinTokenIssuer, SandboxKeeper
from kars_controller.resources import EventLog, ResourceKey, ResourceStore
from kars_controller.runtimes import InstalledRuntime, RuntimeCatalog
from kars_controller.storage import Database

SANDBOX = ResourceKey("KarsSandbox", "default", "agent")
KEY = SandboxKey("default", "agent")


class Bench:
    """One keeper with everything around it real, except the platform and the clock."""

    def __init__(self, state: Path) -> None:
        self.database = Database(state / "resources.db")
        self.store, self.events = ResourceStore(self.database), EventLog(self.database)
        self.sessions, self.platform = PolicySessions(), testing.FakePlatform()
        self.tokens: list[str] = []
        self.revoked: list[SandboxKey] = []
        self.now_s = 0.0
        publisher = PolicyPublisher(self.database, Ed25519PrivateKey.generate())
        surroundings = Surroundings(
            runtimes=RuntimeCatalog(
                installed={"PydanticAi": InstalledRuntime(argv=("/v/bin/python",), bin_dir="/v/bin")}
            ),
            router=RouterMaterial(
                trust_domain="kars.local",
                controller_endpoint="127.0.0.1:1",
                bootstrap_endpoint="127.0.0.1:2",
                trust_bundle_pem=b"r",
                policy_keys=b"[]",
                witness_key=b"w",
            ),
            read_providers=lambda: Providers(
                entries={"openai": {"name": "openai", "baseUrl": "http://x/v1"}}
            ),
            code_dir=state / "code",
        )
        self.keeper = SandboxKeeper(
            store=self.store,
            events=self.events,
            observer=Observer(
                store=self.store,
                publisher=publisher,
                sessions=self.sessions,
                platform=self.platform,
                surroundings=surroundings,
            ),
            publisher=publisher,
            sessions=self.sessions,
            platform=self.platform,
            tokens=JoinTokenIssuer(issue=self._issue, revoke=self.revoked.append),
            code=CodeStore(state / "code"),
            monotonic_s=lambda: self.now_s,
        )
        for document in (testing.inference_policy(), testing.tool_policy(), testing.sandbox()):
            self.store.apply(api_types.admit(document).document)

    def _issue(self, _key: SandboxKey) -> str:
        self.tokens.append(f"token-{len(self.tokens)}")
        return self.tokens[-1]

    async def pass_once(self) -> float | None:
        return await self.keeper.reconcile(self.store.get(SANDBOX))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.database.close()


async def test_a_pod_is_applied_once_with_one_token(bench: Bench) -> None:
    await bench.pass_once()
    await bench.pass_once()
    (applied,) = bench.platform.applied
    (token,) = [file for file in applied.router.files if file.path == "join-token"]
    assert (token.content, token.restarts_router) == (b"token-0", False)
    assert bench.tokens == ["token-0"]
    assert bench.store.get(SANDBOX)["metadata"]["finalizers"] == [FINALIZER]


async def test_a_router_that_stays_away_gets_a_new_token_without_a_restart(bench: Bench) -> None:
    await bench.pass_once()
    bench.now_s = 61
    await bench.pass_once()
    first, second = bench.platform.applied
    assert bench.tokens == ["token-0", "token-1"]
    assert first.digest == second.digest
    await bench.pass_once()
    assert len(bench.tokens) == 2
    with bench.sessions.open(KEY, version=1, digest="d", admin_endpoint=""):
        bench.now_s = 1000
        await bench.pass_once()
    assert len(bench.tokens) == 2


async def test_a_pod_that_vanished_is_brought_back(bench: Bench) -> None:
    await bench.pass_once()
    await bench.platform.delete(KEY)
    await bench.pass_once()
    assert len(bench.platform.applied) == 2


async def test_what_the_platform_refuses_is_in_status_and_tried_again(bench: Bench) -> None:
    bench.platform.apply_error = FailedPreconditionError("isolation_unavailable", "no landlock here")
    await bench.pass_once()
    status = bench.store.get(SANDBOX)["status"]
    assert (status["phase"], status["conditions"][0]["reason"]) == ("Degraded", "IsolationUnavailable")
    bench.platform.apply_error = None
    await bench.pass_once()
    assert bench.store.get(SANDBOX)["status"]["phase"] != "Degraded"


async def test_a_converged_pass_writes_nothing(bench: Bench) -> None:
    await bench.pass_once()
    await bench.pass_once()
    version = bench.store.resource_version
    await bench.pass_once()
    assert bench.store.resource_version == version


async def test_deletion_takes_everything_back(bench: Bench) -> None:
    await bench.pass_once()
    bench.store.delete(SANDBOX)
    assert await bench.pass_once() is None
    assert bench.store.find(SANDBOX) is None
    assert bench.platform.plans == {}
    assert bench.revoked == [KEY]
