"""Policy distribution over real mTLS: bundles, ACKs, NACKs, and a router that comes back."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common import policy
from kars_common.errors import InvalidInputError, PermissionDeniedError
from kars_common.rpc import mapped_errors
from kars_controller import testing
from kars_controller.resources import ResourceKey

Harness = Any
OWN = policy_pb2.SandboxRef(namespace="default", name="agent")
SANDBOX = ResourceKey("KarsSandbox", "default", "agent")


async def setup(harness: Harness) -> None:
    await harness.apply(testing.inference_policy(), testing.tool_policy(), testing.sandbox())


async def subscribe(harness: Harness, version: int = 0, digest: str = "") -> Any:
    call = harness.router().stub(policy_pb2_grpc.PolicyDiscoveryStub).Watch()
    await call.write(
        policy_pb2.WatchRequest(
            subscribe=policy_pb2.Subscribe(sandbox=OWN, current_version=version, current_digest=digest)
        )
    )
    return call


async def bundle(call: Any) -> policy_pb2.SignedBundle:
    async with asyncio.timeout(5):
        with mapped_errors():
            response = await call.read()
    signed: policy_pb2.SignedBundle = response.bundle
    return signed


async def ack(call: Any, signed: policy_pb2.SignedBundle) -> None:
    version = policy.parse_payload(signed.payload).version
    await call.write(policy_pb2.WatchRequest(ack=policy_pb2.Ack(version=version, digest=signed.digest)))


def condition(harness: Harness, key: ResourceKey, name: str = "Ready") -> dict[str, Any] | None:
    document = harness.controller.store.get(key)
    listed = document.get("status", {}).get("conditions", [])
    return next((item for item in listed if item["type"] == name), None)


def ready(harness: Harness, key: ResourceKey, reason: str) -> Callable[[], bool]:
    return lambda: (condition(harness, key) or {}).get("reason") == reason


async def test_an_acknowledged_bundle_makes_sandbox_and_policies_ready(harness: Harness) -> None:
    await setup(harness)
    call = await subscribe(harness)
    signed = await bundle(call)
    public = harness.controller.publisher.keys
    assert signed.key_id in public
    assert not ready(harness, SANDBOX, "Reconciled")()
    await ack(call, signed)
    await harness.until(ready(harness, SANDBOX, "Reconciled"))
    for kind, name, field in (
        ("InferencePolicy", "models", "compiledDigest"),
        ("ToolPolicy", "tools", "agtProfileDigest"),
    ):
        key = ResourceKey(kind, "default", name)
        await harness.until(ready(harness, key, "RouterEnforcing"))
        status = harness.controller.store.get(key)["status"]
        assert status["loadedDigest"] == status[field]
        assert status["phase"] == "Ready"


async def test_a_changed_policy_is_pushed_and_waits_for_its_own_acknowledgement(harness: Harness) -> None:
    await setup(harness)
    call = await subscribe(harness)
    first = await bundle(call)
    await ack(call, first)
    await harness.until(ready(harness, SANDBOX, "Reconciled"))
    await harness.apply(testing.inference_policy(tokenBudget={"dailyTokens": 7}))
    second = await bundle(call)
    parsed = policy.parse_payload(second.payload)
    assert (parsed.version, parsed.inference.token_budget.daily_tokens) == (2, 7)
    await harness.until(ready(harness, SANDBOX, "AwaitingRouterEnforcement"))
    await ack(call, first)  # the old one again proves nothing
    await ack(call, second)
    await harness.until(ready(harness, SANDBOX, "Reconciled"))


async def test_a_refused_bundle_degrades_and_names_the_reason(harness: Harness) -> None:
    await setup(harness)
    call = await subscribe(harness)
    signed = await bundle(call)
    nack = policy_pb2.Nack(version=1, digest=signed.digest, reason="compile_failed", message="bad\nrule")
    await call.write(policy_pb2.WatchRequest(nack=nack))
    await harness.until(ready(harness, SANDBOX, "PolicyRefused"))
    found = condition(harness, SANDBOX)
    assert found is not None
    assert "compile_failed: bad rule" in found["message"]


async def test_a_router_that_leaves_is_no_longer_counted(harness: Harness) -> None:
    await setup(harness)
    call = await subscribe(harness)
    await ack(call, await bundle(call))
    await harness.until(ready(harness, SANDBOX, "Reconciled"))
    call.cancel()
    await harness.until(ready(harness, SANDBOX, "AwaitingRouterEnforcement"))


async def test_a_deleted_policy_closes_the_sandbox(harness: Harness) -> None:
    await setup(harness)
    call = await subscribe(harness)
    await ack(call, await bundle(call))
    await harness.until(ready(harness, SANDBOX, "Reconciled"))
    harness.controller.store.delete(ResourceKey("InferencePolicy", "default", "models"))
    closed = policy.parse_payload((await bundle(call)).payload)
    assert not closed.inference.models
    assert closed.governance.default_verdict == policy_pb2.VERDICT_DENY
    await harness.until(ready(harness, SANDBOX, "InferencePolicyNotFound"))


async def test_policies_may_come_after_the_sandbox(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    await harness.until(ready(harness, SANDBOX, "InferencePolicyNotFound"))
    await harness.apply(testing.tool_policy(), testing.inference_policy())
    call = await subscribe(harness)
    await ack(call, await bundle(call))
    await harness.until(ready(harness, SANDBOX, "Reconciled"))


async def test_versions_and_bundles_survive_a_restart_of_the_controller(start: Any) -> None:
    async with start() as harness:
        await setup(harness)
        call = await subscribe(harness)
        before = await bundle(call)
        call.cancel()
        endpoint = harness.controller.endpoint
    async with start() as harness:
        assert harness.controller.endpoint == endpoint
        call = await subscribe(harness, 1, before.digest)
        assert await bundle(call) == before
        await ack(call, before)


async def test_a_router_ahead_of_a_lost_database_gets_a_higher_version(harness: Harness) -> None:
    await setup(harness)
    call = await subscribe(harness, 50, "sha256:from-before")
    async with asyncio.timeout(5):
        while policy.parse_payload((await bundle(call)).payload).version <= 50:
            pass


async def test_nobody_hears_of_another_sandboxes_policy(harness: Harness) -> None:
    await setup(harness)
    stub = harness.router("other").stub(policy_pb2_grpc.PolicyDiscoveryStub)
    call = stub.Watch()
    await call.write(policy_pb2.WatchRequest(subscribe=policy_pb2.Subscribe(sandbox=OWN)))
    with pytest.raises(PermissionDeniedError) as refusal:
        await bundle(call)
    assert refusal.value.reason == "not_own_sandbox"
    operator = harness.operator().stub(policy_pb2_grpc.PolicyDiscoveryStub).Watch()
    with pytest.raises(PermissionDeniedError):
        await bundle(operator)


async def test_the_first_word_must_be_subscribe(harness: Harness) -> None:
    call = harness.router().stub(policy_pb2_grpc.PolicyDiscoveryStub).Watch()
    await call.write(policy_pb2.WatchRequest(ack=policy_pb2.Ack(version=1)))
    with pytest.raises(InvalidInputError):
        await bundle(call)


async def test_deleting_a_sandbox_stops_its_pod_and_its_identity(harness: Harness) -> None:
    await setup(harness)
    await harness.until(lambda: bool(harness.platform.plans))
    assert harness.controller.store.get(SANDBOX)["metadata"]["finalizers"]
    harness.controller.store.delete(SANDBOX)
    await harness.until(lambda: harness.controller.store.find(SANDBOX) is None)
    assert not harness.platform.plans


async def test_one_broken_resource_does_not_stop_the_others(harness: Harness) -> None:
    await harness.apply(testing.sandbox("broken"))
    document = harness.controller.store.get(ResourceKey("KarsSandbox", "default", "broken"))
    document["spec"] = {"runtime": {"kind": ["poison"]}}
    harness.controller.store.apply(document | {"metadata": {**document["metadata"], "resourceVersion": ""}})
    await setup(harness)
    call = await subscribe(harness)
    await ack(call, await bundle(call))
    await harness.until(ready(harness, SANDBOX, "Reconciled"))


async def test_the_shipped_default_policy_is_put_back(start: Any) -> None:
    key = ResourceKey("ToolPolicy", "kars-system", "kars-default")
    async with start() as harness:
        shipped = harness.controller.store.get(key)["spec"]
        harness.controller.store.delete(key)
    async with start() as harness:
        assert harness.controller.store.get(key)["spec"] == shipped
