"""The policy watch against a controller over mTLS: what comes into force, what is answered, what stays."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common import policy
from kars_common.errors import UnavailableError
from kars_common.policy import PolicyStore, PolicyWatch
from kars_common.rpc import AuthorizationTable, PeerChannel, RpcServer
from kars_common.tasks import Backoff
from kars_common.testing import MemoryAuthority, StaticSvidSource

KEY = Ed25519PrivateKey.generate()
KEYS = {policy.key_id(KEY.public_key()): KEY.public_key()}
TABLE = AuthorizationTable({"kars.policy.v1.PolicyDiscovery/Watch": ["ns/*/sandbox/*"]})


def signed(version: int, *, name: str = "writer", tokens: int = 0) -> policy_pb2.SignedBundle:
    bundle = policy_pb2.PolicyBundle(
        sandbox=policy_pb2.SandboxRef(namespace="team", name=name),
        version=version,
        inference=policy_pb2.InferenceRules(token_budget=policy_pb2.TokenBudget(daily_tokens=tokens)),
    )
    return policy.sign(policy.canonical_payload(bundle), KEY)


class Controller(policy_pb2_grpc.PolicyDiscoveryServicer):
    """Pushes what a test puts in, and keeps what the watch answers."""

    def __init__(self) -> None:
        self.subscriptions: asyncio.Queue[policy_pb2.Subscribe] = asyncio.Queue()
        self.answers: asyncio.Queue[policy_pb2.WatchRequest] = asyncio.Queue()
        self.streams: list[asyncio.Queue[policy_pb2.SignedBundle | None]] = []

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        requests = aiter(request_iterator)
        first = await anext(requests)
        pushes: asyncio.Queue[policy_pb2.SignedBundle | None] = asyncio.Queue()
        self.streams.append(pushes)
        self.subscriptions.put_nowait(first.subscribe)
        while (push := await pushes.get()) is not None:
            yield policy_pb2.WatchResponse(bundle=push)
            self.answers.put_nowait(await anext(requests))

    async def GetSigningKeys(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def push(self, bundle: policy_pb2.SignedBundle) -> policy_pb2.WatchRequest:
        """Push on the newest stream and return the answer."""
        self.streams[-1].put_nowait(bundle)
        return await asyncio.wait_for(self.answers.get(), 5)

    async def subscribed(self) -> policy_pb2.Subscribe:
        return await asyncio.wait_for(self.subscriptions.get(), 5)


class House:
    """One controller, and watches that follow it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = MemoryAuthority()
        self.controller = Controller()
        self.source = StaticSvidSource(self.authority.sandbox("team", "writer"))
        self.applied: list[int] = []
        self.server: RpcServer
        self.port = 0

    async def start(self) -> None:
        source = StaticSvidSource(self.authority.service("controller"))
        self.server = RpcServer(source, TABLE, f"127.0.0.1:{self.port}")
        self.server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, self.controller)
        self.port = await self.server.start()

    def watch(self, apply: Callable[[policy_pb2.PolicyBundle, bytes], None] | None = None) -> PolicyWatch:
        channel = PeerChannel(self.source, f"127.0.0.1:{self.port}", "controller.svc.kars.local")
        return PolicyWatch(
            channel,
            ("team", "writer"),
            KEYS,
            self.directory / "policy",
            apply or (lambda bundle, _: self.applied.append(bundle.version)),
            admin_endpoint="127.0.0.1:9",
            backoff=Backoff(first_s=0.02, most_s=0.1),
        )

    @contextlib.asynccontextmanager
    async def running(self, watch: PolicyWatch) -> AsyncIterator[policy_pb2.Subscribe]:
        task = asyncio.create_task(watch.run())
        try:
            yield await self.controller.subscribed()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await watch._channel.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.start()
    yield house
    await house.server.stop(0)


async def test_bundle_is_applied_kept_and_acknowledged(house: House) -> None:
    watch = house.watch()
    async with house.running(watch) as subscribe:
        assert (subscribe.sandbox.namespace, subscribe.sandbox.name) == ("team", "writer")
        assert (subscribe.current_version, subscribe.admin_endpoint) == (0, "127.0.0.1:9")
        answer = await house.controller.push(signed(3))
    assert (answer.ack.version, answer.ack.digest) == (3, signed(3).digest)
    assert house.applied == [3]
    assert watch.in_force is not None
    assert not watch.in_force.last_known_good
    assert PolicyStore(house.directory / "policy").load() == signed(3)


async def test_last_good_bundle_is_enforced_without_a_controller(house: House) -> None:
    async with house.running(house.watch()):
        await house.controller.push(signed(3))
    await house.server.stop(0)
    watch = house.watch()
    state = watch.load()
    assert state is not None
    assert (state.version, state.last_known_good) == (3, True)
    assert house.applied == [3, 3]


async def test_controller_confirms_what_was_loaded_from_disk(house: House) -> None:
    PolicyStore(house.directory / "policy").save(signed(3), 3)
    watch = house.watch()
    watch.load()
    async with house.running(watch) as subscribe:
        assert (subscribe.current_version, subscribe.current_digest) == (3, signed(3).digest)
        answer = await house.controller.push(signed(3))
    assert answer.ack.version == 3
    assert house.applied == [3]
    assert watch.in_force is not None
    assert not watch.in_force.last_known_good


@pytest.mark.parametrize(
    "tampered",
    [
        lambda b: b.__class__(
            payload=b.payload + b" ", digest=b.digest, signature=b.signature, key_id=b.key_id
        ),
        lambda b: b.__class__(payload=b.payload, digest=b.digest, signature=b"\x00" * 64, key_id=b.key_id),
        lambda b: b.__class__(),
    ],
)
async def test_bundle_changed_on_disk_is_not_enforced(house: House, tampered: Any) -> None:
    PolicyStore(house.directory / "policy").save(tampered(signed(3)), 3)
    watch = house.watch()
    assert watch.load() is None
    assert house.applied == []


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 64, b"\x00" * (5 * 1024 * 1024)])
async def test_garbage_on_disk_is_not_enforced(house: House, garbage: bytes) -> None:
    (house.directory / "policy").mkdir()
    (house.directory / "policy" / "last-good.pb").write_bytes(garbage)
    assert house.watch().load() is None


async def test_kept_bundle_of_another_sandbox_is_not_enforced(house: House) -> None:
    PolicyStore(house.directory / "policy").save(signed(3, name="other"), 3)
    assert house.watch().load() is None


async def test_every_refused_bundle_is_nacked_and_the_last_good_one_stays(house: House) -> None:
    watch = house.watch()
    wrong_digest = signed(9)
    wrong_digest.digest = signed(8).digest
    forged = signed(9)
    forged.signature = b"\x00" * 64
    attacks = {
        "signature_invalid": forged,
        "digest_mismatch": wrong_digest,
        "version_rollback": signed(4),
        "not_canonical": policy.sign(b" " + signed(9).payload, KEY),
        "unknown_field": policy.sign(signed(9).payload[:-1] + b',"zap":{}}', KEY),
        "malformed": policy.sign(b"{", KEY),
        "wrong_sandbox": signed(9, name="other"),
    }
    async with house.running(watch):
        await house.controller.push(signed(5))
        for reason, attack in attacks.items():
            answer = await house.controller.push(attack)
            assert answer.nack.reason == reason
            assert answer.nack.in_force_digest == signed(5).digest
            assert watch.last_nack == answer.nack
        assert (await house.controller.push(signed(6))).ack.version == 6
    assert house.applied == [5, 6]


async def test_same_version_with_other_content_is_a_rollback(house: House) -> None:
    async with house.running(house.watch()):
        await house.controller.push(signed(5))
        answer = await house.controller.push(signed(5, tokens=1))
    assert answer.nack.reason == "version_rollback"


async def test_rollback_is_refused_after_a_restart_too(house: House) -> None:
    async with house.running(house.watch()):
        await house.controller.push(signed(5))
    watch = house.watch()
    watch.load()
    async with house.running(watch):
        answer = await house.controller.push(signed(4))
    assert answer.nack.reason == "version_rollback"


async def test_bundle_that_does_not_compile_is_nacked_and_not_kept(house: House) -> None:
    def apply(bundle: policy_pb2.PolicyBundle, payload: bytes) -> None:
        if bundle.version == 6:
            raise ValueError("rule 3: no such\naction" + "!" * 2000)
        house.applied.append(bundle.version)

    watch = house.watch(apply)
    async with house.running(watch):
        await house.controller.push(signed(5))
        answer = await house.controller.push(signed(6))
    assert answer.nack.reason == "compile_failed"
    assert answer.nack.message.startswith("rule 3: no such action")
    assert len(answer.nack.message) <= 512
    assert watch.in_force is not None
    assert watch.in_force.version == 5
    assert PolicyStore(house.directory / "policy").load() == signed(5)


async def test_full_disk_does_not_stop_enforcement(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    watch = house.watch()
    monkeypatch.setattr(watch._store, "save", full)
    async with house.running(watch):
        assert (await house.controller.push(signed(5))).ack.version == 5
    assert house.applied == [5]


async def test_watch_comes_back_after_the_controller_was_away(house: House) -> None:
    watch = house.watch()
    async with house.running(watch):
        await house.controller.push(signed(5))
        await house.server.stop(0)
        assert watch.in_force is not None
        await house.start()
        subscribe = await house.controller.subscribed()
        assert subscribe.current_version == 5
        assert (await house.controller.push(signed(6))).ack.version == 6


async def test_watch_comes_back_when_the_controller_ends_the_stream(house: House) -> None:
    async with house.running(house.watch()):
        house.controller.streams[-1].put_nowait(None)
        await house.controller.subscribed()
        assert (await house.controller.push(signed(6))).ack.version == 6


async def test_watch_moves_to_a_new_connection_when_the_identity_is_renewed(house: House) -> None:
    async with house.running(house.watch()):
        await house.controller.push(signed(5))
        house.source.rotate(house.authority.sandbox("team", "writer"))
        assert (await house.controller.subscribed()).current_version == 5
        assert (await house.controller.push(signed(6))).ack.version == 6


async def test_watch_waits_for_an_identity(house: House) -> None:
    svid = house.source.current()
    house.source = StaticSvidSource()
    watch = house.watch()
    task = asyncio.create_task(watch.run())
    house.source.rotate(svid)
    await house.controller.subscribed()
    assert (await house.controller.push(signed(6))).ack.version == 6
    assert (await asyncio.wait_for(watch.wait_in_force(), 5)).version == 6
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await watch._channel.close()


def test_source_without_identity_says_so() -> None:
    with pytest.raises(UnavailableError):
        StaticSvidSource().current()
