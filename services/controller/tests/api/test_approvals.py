"""Approvals over real mTLS: held by routers, decided by distinct people, once."""

import asyncio
import time
from typing import Any

import pytest
from kars.governance.v1 import governance_pb2 as g
from kars.governance.v1 import governance_pb2_grpc
from kars.policy.v1 import policy_pb2
from kars_common.errors import (
    FailedPreconditionError,
    InvalidInputError,
    KarsError,
    NotFoundError,
    PermissionDeniedError,
)
from kars_common.rpc import mapped_errors

Harness = Any
OWN = policy_pb2.SandboxRef(namespace="default", name="agent")
ID = "01939d5c0000aaaaaaaaaaaaaa"


def hold(approval_id: str = ID, *, approvers: int = 1, expires_in_s: float = 60) -> g.Approval:
    approval = g.Approval(id=approval_id, sandbox=OWN, action="tool:publish:q3.md", min_approvals=approvers)
    approval.expires_at.FromNanoseconds(int((time.time() + expires_in_s) * 1e9))
    return approval


async def attach(harness: Harness, *holds: g.Approval, name: str = "agent") -> Any:
    call = harness.router(name).stub(governance_pb2_grpc.ApprovalsStub).Attach()
    await call.write(g.AttachRequest(sandbox=policy_pb2.SandboxRef(namespace="default", name=name)))
    for item in holds:
        await call.write(g.AttachRequest(pending=item))
    return call


async def pending(harness: Harness, approval_id: str = ID) -> g.Approval:
    found: g.Approval = await harness.until(lambda: harness.controller.approvals.get(approval_id))
    return found


async def decide(harness: Harness, user: str, *, grant: bool, approval_id: str = ID) -> g.Approval:
    stub = harness.operator(user).stub(governance_pb2_grpc.ApprovalsStub)
    with mapped_errors():
        answer = await stub.DecideApproval(
            g.DecideApprovalRequest(id=approval_id, grant=grant, note="why not")
        )
    found: g.Approval = answer.approval
    return found


async def told(call: Any) -> g.Approval:
    async with asyncio.timeout(5):
        with mapped_errors():
            response = await call.read()
    found: g.Approval = response.decided
    return found


@pytest.mark.parametrize(
    ("grant", "state"), [(True, g.APPROVAL_STATE_GRANTED), (False, g.APPROVAL_STATE_DENIED)]
)
async def test_a_decision_reaches_the_router_that_holds(harness: Harness, *, grant: bool, state: int) -> None:
    call = await attach(harness, hold())
    await pending(harness)
    decided = await decide(harness, "ann", grant=grant)
    assert (decided.state, decided.decided_by) == (state, "spiffe://kars.local/operator/ann")
    assert (await told(call)).state == state
    types = [item["type"] for item in harness.controller.audit.records(0)]
    assert {"approval.decision", "approval.counted"} <= set(types)


async def test_two_distinct_people_are_needed_where_the_rule_says_two(harness: Harness) -> None:
    call = await attach(harness, hold(approvers=2))
    await pending(harness)
    first = await decide(harness, "ann", grant=True)
    assert first.state == g.APPROVAL_STATE_PENDING
    with pytest.raises(FailedPreconditionError) as refusal:
        await decide(harness, "ann", grant=True)
    assert refusal.value.reason == "approver_already_counted"
    second = await decide(harness, "bob", grant=True)
    assert second.state == g.APPROVAL_STATE_GRANTED
    assert len(set((await told(call)).granted_by)) == 2


async def test_one_denial_ends_it_and_nothing_reopens_it(harness: Harness) -> None:
    await attach(harness, hold(approvers=2))
    await pending(harness)
    await decide(harness, "ann", grant=True)
    assert (await decide(harness, "bob", grant=False)).state == g.APPROVAL_STATE_DENIED
    with pytest.raises(FailedPreconditionError) as refusal:
        await decide(harness, "cid", grant=True)
    assert refusal.value.reason == "approval_closed"


async def test_a_decision_made_while_the_router_was_away_is_told_on_reconnect(harness: Harness) -> None:
    call = await attach(harness, hold())
    await pending(harness)
    call.cancel()
    await decide(harness, "ann", grant=True)
    again = await attach(harness, hold())
    assert (await told(again)).state == g.APPROVAL_STATE_GRANTED


async def test_a_router_cannot_publish_a_grant(harness: Harness) -> None:
    forged = hold()
    forged.state = g.APPROVAL_STATE_GRANTED
    forged.granted_by.append("spiffe://kars.local/operator/ann")
    forged.decided_by = "spiffe://kars.local/operator/ann"
    await attach(harness, forged)
    found = await pending(harness)
    assert found.state == g.APPROVAL_STATE_PENDING
    assert not found.granted_by
    assert not found.decided_by


async def test_a_router_cannot_close_its_hold_as_granted(harness: Harness) -> None:
    call = await attach(harness, hold())
    await pending(harness)
    closed = g.ApprovalClosed(id=ID, state=g.APPROVAL_STATE_GRANTED)
    await call.write(g.AttachRequest(closed=closed))
    with pytest.raises(InvalidInputError):
        await told(call)
    assert (await pending(harness)).state == g.APPROVAL_STATE_PENDING


async def test_a_router_cannot_touch_another_sandboxes_hold(harness: Harness) -> None:
    await attach(harness, hold())
    await pending(harness)
    other = await attach(harness, hold(), name="other")
    with pytest.raises(PermissionDeniedError):
        await told(other)
    closer = await attach(harness, name="other")
    await closer.write(g.AttachRequest(closed=g.ApprovalClosed(id=ID, state=g.APPROVAL_STATE_WITHDRAWN)))
    with pytest.raises(PermissionDeniedError):
        await told(closer)
    liar = harness.router("other").stub(governance_pb2_grpc.ApprovalsStub).Attach()
    await liar.write(g.AttachRequest(sandbox=OWN))
    with pytest.raises(PermissionDeniedError) as refusal:
        await told(liar)
    assert refusal.value.reason == "not_own_sandbox"


async def test_a_router_cannot_decide(harness: Harness) -> None:
    stub = harness.router().stub(governance_pb2_grpc.ApprovalsStub)
    with pytest.raises(PermissionDeniedError), mapped_errors():
        await stub.DecideApproval(g.DecideApprovalRequest(id=ID, grant=True))


async def test_withdrawn_and_expired_holds_cannot_be_granted(harness: Harness) -> None:
    call = await attach(harness, hold(), hold("01939d5c0000bbbbbbbbbbbbbb", expires_in_s=0.3))
    await pending(harness)
    await call.write(g.AttachRequest(closed=g.ApprovalClosed(id=ID, state=g.APPROVAL_STATE_WITHDRAWN)))
    await harness.until(lambda: harness.controller.approvals.get(ID).state == g.APPROVAL_STATE_WITHDRAWN)
    with pytest.raises(FailedPreconditionError):
        await decide(harness, "ann", grant=True)

    def expired() -> bool:
        harness.controller.approvals.expire()
        found = harness.controller.approvals.get("01939d5c0000bbbbbbbbbbbbbb")
        return found is not None and found.state == g.APPROVAL_STATE_EXPIRED

    await harness.until(expired)
    with pytest.raises(FailedPreconditionError):
        await decide(harness, "ann", grant=True, approval_id="01939d5c0000bbbbbbbbbbbbbb")


async def test_a_prefix_must_fit_exactly_one(harness: Harness) -> None:
    await attach(harness, hold("01939d5c0000aaaaaaaaaaaaaa"), hold("01939d5c0000bbbbbbbbbbbbbb"))
    await pending(harness, "01939d5c0000bbbbbbbbbbbbbb")
    for prefix in ("01939d", "01939", "ffffffff", ""):
        with pytest.raises(NotFoundError) as refusal:
            await decide(harness, "ann", grant=True, approval_id=prefix)
        assert refusal.value.reason == "approval_not_found"
    found = await decide(harness, "ann", grant=True, approval_id="01939d5c0000B")
    assert found.id == "01939d5c0000bbbbbbbbbbbbbb"


@pytest.mark.parametrize(
    "bad",
    [
        hold("short"),
        hold("a" * 25 + "/"),
        hold(expires_in_s=-1),
        hold(expires_in_s=3 * 24 * 3600),
        hold(approvers=-1),
        hold(approvers=1000),
        g.Approval(id=ID, action="", expires_at=hold().expires_at),
        g.Approval(id=ID, action="x", detail="d" * 5000, expires_at=hold().expires_at),
    ],
)
async def test_malformed_holds_are_refused(harness: Harness, bad: g.Approval) -> None:
    call = await attach(harness, bad)
    with pytest.raises(KarsError) as refusal:
        await told(call)
    assert refusal.value.reason == "approval_invalid"


async def test_list_pages_newest_first_and_watch_begins_with_what_is_pending(harness: Harness) -> None:
    ids = [f"01939d5c000{number}aaaaaaaaaaaaaa" for number in range(5)]
    await attach(harness, *(hold(item) for item in ids))
    await pending(harness, ids[-1])
    stub = harness.operator().stub(governance_pb2_grpc.ApprovalsStub)
    first = await stub.ListApprovals(g.ListApprovalsRequest(page_size=3))
    rest = await stub.ListApprovals(g.ListApprovalsRequest(page_size=3, page_token=first.next_page_token))
    assert [item.id for item in (*first.approvals, *rest.approvals)] == ids[::-1]
    assert not rest.next_page_token
    watch = stub.WatchApprovals(g.WatchApprovalsRequest())
    async with asyncio.timeout(5):
        assert [(await watch.read()).approval.id for _ in ids] == ids
        await decide(harness, "ann", grant=False, approval_id=ids[0])
        changed = (await watch.read()).approval
    assert (changed.id, changed.state) == (ids[0], g.APPROVAL_STATE_DENIED)
    watch.cancel()


async def test_a_router_that_hangs_up_leaves_no_task_behind(harness: Harness) -> None:
    call = await attach(harness, hold())
    await pending(harness)
    call.cancel()
    await harness.until(
        lambda: (
            not any(
                "decision" in task.get_name() or "approvals of" in task.get_name()
                for task in asyncio.all_tasks()
            )
        )
    )


async def test_holds_survive_a_restart_of_the_controller(start: Any) -> None:
    async with start() as harness:
        await attach(harness, hold())
        await pending(harness)
    async with start() as harness:
        call = await attach(harness, hold())
        assert (await decide(harness, "ann", grant=True)).state == g.APPROVAL_STATE_GRANTED
        assert (await told(call)).state == g.APPROVAL_STATE_GRANTED
