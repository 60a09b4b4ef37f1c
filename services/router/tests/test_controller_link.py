"""The router with a controller: policy over the watch, approvals, witness, and the operators' server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.audit.v1 import audit_pb2, audit_pb2_grpc
from kars.budget.v1 import budget_pb2, budget_pb2_grpc
from kars.governance.v1 import governance_pb2
from kars.inference.v1 import inference_pb2, inference_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.errors import KarsError, PermissionDeniedError
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.svid import Svid
from kars_common.testing import MemoryAuthority, StaticSvidSource
from kars_router.authorization import TABLE
from kars_router_testkit import FakeProvider, HttpAnswer, RouterProcess, bundle, completion, sse_completion
from kars_router_testkit.controller import FakeController
from kars_router_testkit.policies import approval

ASK = bundle(version=3, rules=[approval("ask", ["tool:publish:*"])], budget={"dailyTokens": "100000"})
TOOL = ("publish", '{"path":"q3.md"}')
WAIT_S = 15


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    running = FakeController(MemoryAuthority(), Ed25519PrivateKey.generate())  # type: ignore[abstract]  # serves a part
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def router(
    controller: FakeController, provider: FakeProvider, tmp_path: Path
) -> AsyncIterator[RouterProcess]:
    process = RouterProcess(
        directory=tmp_path,
        providers=[("main", provider.base_url)],
        policy=bundle(version=1),
        signer=controller.signer,
        env=controller.write_files(tmp_path / "identity"),
    )
    process.prepare()
    await asyncio.to_thread(process.start)
    yield process
    await asyncio.to_thread(process.stop)


async def admin_endpoint(controller: FakeController) -> str:
    async with asyncio.timeout(WAIT_S):
        return (await controller.heard.get()).subscribe.admin_endpoint


async def bring_in_force(controller: FakeController, document: policy_pb2.PolicyBundle) -> str:
    endpoint = await admin_endpoint(controller)
    controller.publish(document)
    async with asyncio.timeout(WAIT_S):
        assert (await controller.heard.get()).ack.version == document.version
    return endpoint


async def chat(router: RouterProcess, *, stream: bool = False) -> HttpAnswer:
    return await asyncio.to_thread(router.chat, stream=stream)


async def test_a_bundle_is_acknowledged_and_in_force_and_a_bad_one_changes_nothing(
    router: RouterProcess, controller: FakeController
) -> None:
    await bring_in_force(controller, bundle(version=2, models=[("main", "other")]))
    assert (await chat(router)).code == "policy_denied"
    controller.publish(bundle(version=4, rules=[{"name": "typeless"}]))
    async with asyncio.timeout(WAIT_S):
        nack = (await controller.heard.get()).nack
    assert (nack.reason, nack.version) == ("compile_failed", 4)
    assert (await chat(router)).code == "policy_denied"
    assert [record["version"] for record in router.records("policy.applied")] == [1, 2]


@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
async def test_a_held_call_completes_when_granted_and_is_refused_when_denied(
    router: RouterProcess, controller: FakeController, provider: FakeProvider, streamed: bool
) -> None:
    await bring_in_force(controller, ASK)
    for grant in (True, False):
        provider.reply(sse_completion([], tools=[TOOL]) if streamed else completion(None, tools=[TOOL]))
        call = asyncio.create_task(chat(router, stream=streamed))
        async with asyncio.timeout(WAIT_S):
            hold = await controller.pending()
        assert (hold.action, hold.rule, hold.sandbox.name) == ("tool:publish:q3.md", "ask", "agent")
        assert hold.detail == 'publish({"path":"q3.md"})'
        assert not call.done()
        controller.decide(hold, grant=grant)
        async with asyncio.timeout(WAIT_S):
            answer = await call
        assert (b"q3.md" in answer.body and b"tool_calls" in answer.body) is grant
        assert (b"approval_denied" in answer.body) is not grant
    kinds = [record["type"] for record in router.records() if record["type"].startswith("approval.")]
    assert kinds == ["approval.requested", "approval.granted", "approval.requested", "approval.denied"]
    assert router.records("approval.granted")[0]["decided_by"] == "spiffe://kars.local/operator/ann"


async def test_a_grant_for_another_sandbox_or_by_too_few_changes_nothing(
    router: RouterProcess, controller: FakeController, provider: FakeProvider
) -> None:
    two = bundle(version=3, rules=[approval("ask", ["tool:publish:*"], min_approvals=2)])
    await bring_in_force(controller, two)
    provider.reply(completion(None, tools=[TOOL]))
    call = asyncio.create_task(chat(router))
    async with asyncio.timeout(WAIT_S):
        hold = await controller.pending()
    controller.decide(hold, grant=True)  # one approver of two
    other = governance_pb2.Approval()
    other.CopyFrom(hold)
    other.id = "0" * 26
    controller.decide(other, grant=True)
    controller.decide(hold, grant=False)
    async with asyncio.timeout(WAIT_S):
        assert (await call).code == "approval_denied"


async def test_a_caller_that_hangs_up_withdraws_its_hold(
    router: RouterProcess, controller: FakeController, provider: FakeProvider
) -> None:
    await bring_in_force(controller, ASK)
    provider.reply(completion(None, tools=[TOOL]))
    body = b'{"messages":[{"role":"user","content":"x"}]}'
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    async with asyncio.timeout(WAIT_S):
        await controller.pending()
        writer.close()
        message = await controller.holds.get()
    assert message.closed.state == governance_pb2.APPROVAL_STATE_WITHDRAWN
    assert reader is not None
    async with asyncio.timeout(WAIT_S):
        while not router.records("call.settled"):
            await asyncio.sleep(0.05)
    settled = router.records("call.settled")[-1]
    assert (settled["ending"], settled["charged"]) == ("cancelled", 15)


async def test_a_hold_outlives_the_controller_and_is_published_again(
    router: RouterProcess, controller: FakeController, provider: FakeProvider
) -> None:
    await bring_in_force(controller, ASK)
    provider.reply(completion(None, tools=[TOOL]))
    call = asyncio.create_task(chat(router))
    async with asyncio.timeout(WAIT_S):
        first = await controller.pending()
    await controller.stop()
    assert not call.done()
    again = FakeController(controller.authority, controller.signer)  # type: ignore[abstract]  # serves a part
    await again.start(controller.endpoint)
    async with asyncio.timeout(60):
        second = await again.pending()
    assert second.id == first.id
    again.decide(second, grant=True)
    async with asyncio.timeout(WAIT_S):
        assert (await call).status == 200
    await again.stop()


def channel(controller: FakeController, svid: Svid, endpoint: str) -> PeerChannel:
    return PeerChannel(
        StaticSvidSource(svid), endpoint, controller.authority.sandbox("team", "agent").spiffe_id.dns_name
    )


async def test_operators_see_what_is_in_force_used_and_recorded(
    router: RouterProcess, controller: FakeController
) -> None:
    endpoint = await bring_in_force(controller, ASK)
    assert (await chat(router)).status == 200
    peer = channel(controller, controller.authority.operator("ann"), endpoint)
    with mapped_errors():
        stub = peer.stub(policy_pb2_grpc.PolicyEnforcementStub)
        (door,) = (await stub.GetInForce(policy_pb2.GetInForceRequest())).doors
        assert (door.version, door.last_known_good, door.sandbox.name) == (3, False, "agent")
        assert b'"version":"3"' in door.payload
        budgets = peer.stub(budget_pb2_grpc.BudgetsStub)
        request = budget_pb2.GetUsageRequest(sandbox=door.sandbox)
        day, month = (await budgets.GetUsage(request)).windows
        assert (day.used_tokens, day.reserved_tokens, day.limit_tokens, month.used_tokens) == (
            15,
            0,
            100_000,
            15,
        )
        models = peer.stub(inference_pb2_grpc.ModelsStub)
        (model,) = (await models.ListModels(inference_pb2.ListModelsRequest())).models
        assert (model.target.deployment, model.provider_configured) == ("gpt-test", True)
        assert model.health.state == inference_pb2.HEALTH_STATE_HEALTHY
        audit = peer.stub(audit_pb2_grpc.AuditLogStub)
        listed = await audit.ListRecords(audit_pb2.ListRecordsRequest(page_size=1000))
        assert any(b'"type":"call.settled"' in record for record in listed.records)
        with pytest.raises(KarsError) as unknown, mapped_errors():
            await budgets.GetUsage(budget_pb2.GetUsageRequest())
        assert unknown.value.reason == "sandbox_not_found"
    await peer.close()


async def test_a_sandbox_may_ask_nothing_of_a_router(
    router: RouterProcess, controller: FakeController
) -> None:
    endpoint = await admin_endpoint(controller)
    peer = channel(controller, controller.authority.sandbox("team", "agent"), endpoint)
    stub = peer.stub(policy_pb2_grpc.PolicyEnforcementStub)
    with pytest.raises(PermissionDeniedError), mapped_errors():
        await stub.GetInForce(policy_pb2.GetInForceRequest())
    await peer.close()


async def test_checkpoints_are_witnessed(router: RouterProcess, controller: FakeController) -> None:
    assert (await chat(router)).status == 200
    async with asyncio.timeout(30):
        while not (router.state / "audit" / "witnessed").exists():
            await asyncio.sleep(0.05)
    assert controller.witness.witnessed("spiffe://kars.local/ns/team/sandbox/agent") is not None


def test_the_table_names_every_method_that_is_served_and_no_other() -> None:
    served = [
        policy_pb2.DESCRIPTOR.services_by_name["PolicyEnforcement"],
        budget_pb2.DESCRIPTOR.services_by_name["Budgets"],
        inference_pb2.DESCRIPTOR.services_by_name["Models"],
        audit_pb2.DESCRIPTOR.services_by_name["AuditLog"],
    ]
    methods = {f"{service.full_name}/{method.name}" for service in served for method in service.methods}
    assert methods == TABLE.methods
