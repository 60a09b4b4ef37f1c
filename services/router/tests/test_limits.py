"""Buckets, slots, holds and health, on clocks that the test moves; and how the process ends."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kars_router.approvals.holds import HoldRegistry
from kars_router.limits.bucket import TokenBucket
from kars_router.limits.slots import Slots
from kars_router.pipeline.call import Call
from kars_router.pipeline.door import Door, DoorDefaults
from kars_router.pipeline.policy import Model
from kars_router.pipeline.verdicts import Deny, Hold
from kars_router.providers.health import Health, RetryBudget
from kars_router_testkit import FakeProvider, RouterProcess, bundle, completion
from kars_router_testkit.fixtures import StartRouter
from kars_router_testkit.policies import approval, capability


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(2, 3, clock)
    assert [bucket.take() for _ in range(3)] == [None, None, None]
    assert bucket.take() == pytest.approx(0.5)
    clock.now += 0.5
    assert bucket.take() is None
    clock.now += 100
    bucket.resize(2, 1)
    assert [bucket.take() is None for _ in range(2)] == [True, False]


async def test_slots_queue_in_order_and_refuse_beyond_the_queue() -> None:
    slots = Slots(1, 1, 5)
    assert await slots.acquire()
    second = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    assert not await slots.acquire()
    slots.release()
    assert await second
    assert slots.in_flight == 1


@pytest.mark.parametrize("handed_over", [False, True])
async def test_a_waiter_that_goes_away_takes_no_slot_with_it(handed_over: bool) -> None:
    slots = Slots(1, 5, 5)
    assert await slots.acquire()
    waiter = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    if handed_over:
        slots.release()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    if not handed_over:
        slots.release()
    assert slots.in_flight == 0
    assert await slots.acquire()


async def test_a_wait_for_a_slot_ends() -> None:
    slots = Slots(1, 5, 0.01)
    assert await slots.acquire()
    assert not await slots.acquire()
    assert slots.in_flight == 1


def test_three_failures_in_a_minute_make_a_model_unhealthy_until_a_minute_is_over() -> None:
    clock = Clock()
    health = Health(clock)
    bad, good = Model(provider="p", deployment="bad"), Model(provider="p", deployment="good")
    for _ in range(3):
        health.failed(bad)
    assert health.order([bad, good]) == [good]
    assert health.order([bad]) == [bad]
    clock.now += 61
    assert health.order([bad, good]) == [bad, good]
    for _ in range(3):
        health.failed(bad)
    health.succeeded(bad, 0.1)
    assert health.healthy(bad)


def test_retries_are_a_tenth_of_the_calls_once_the_reserve_is_used() -> None:
    budget = RetryBudget()
    assert sum(budget.take() for _ in range(100)) == 10
    for _ in range(21):
        budget.called()
    assert sum(budget.take() for _ in range(100)) == 2


class Records:
    """Audit records in a list."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def event(self, kind: str, fields: Any) -> int:
        self.kinds.append(kind)
        return len(self.kinds)

    async def durable(self, seq: int, *, patient: bool = False) -> None: ...


class Silent:
    """A caller that is only there."""

    async def partial(self, objects: list[dict[str, Any]]) -> None: ...
    async def waiting(self, approval_id: str) -> None: ...
    def watch(self) -> None: ...


async def test_holds_are_bounded_and_expire_as_denials_without_a_controller() -> None:
    records = Records()
    holds = HoldRegistry(records, expiry_s=0.1, max_holds=1)
    door = Door(namespace="n", name="s", defaults=DoorDefaults())
    hold = Hold(action="tool:x", detail="", rule="r")

    def call() -> Call:
        return Call(door=door, release=Silent(), trace_id="t")

    first = asyncio.create_task(holds.wait(call(), hold))
    await asyncio.sleep(0)
    second = await holds.wait(call(), hold)
    assert isinstance(second, Deny)
    assert (second.status, second.code) == (503, "too_many_holds")
    verdict = await first
    assert isinstance(verdict, Deny)
    assert verdict.code == "approval_expired"
    assert records.kinds == ["approval.requested", "approval.expired"]
    assert not holds.pending("n/s")


class TestEvaluate:
    def test_answers_allow_deny_and_rate_limit_with_200(self, start_router: StartRouter) -> None:
        router = start_router(
            policy=bundle(
                default="VERDICT_DENY",
                rules=[capability("c", allow=["tool:read:*"])],
                tools=[{"tool": "read", "rateRps": 1, "rateBurst": 1}],
            )
        )
        allowed = router.evaluate(action="TOOL:read:a.md", agent_id="somebody-else")
        assert (allowed.status, allowed.json["allowed"], allowed.json["action"]) == (
            200,
            True,
            "tool:read:a.md",
        )
        limited = router.evaluate(action="tool:read:b.md").json
        assert (limited["allowed"], limited["rate_limited"], limited["retry_after_secs"]) == (False, True, 1)
        denied = router.evaluate(action="tool:write:a.md").json
        assert (denied["allowed"], denied["decision"], denied["code"]) == (False, "deny", "policy_denied")
        assert router.evaluate().json["action"] == "unknown"
        assert {record["sandbox"] for record in router.records("call.denied")} == {"team/agent"}

    def test_an_approval_rule_holds_the_question(self, start_router: StartRouter) -> None:
        router = start_router(
            policy=bundle(rules=[approval("ask", ["tool:publish*"])]), env={"APPROVAL_TIMEOUT_S": "0.2"}
        )
        assert router.evaluate(action="tool:publish:x").json["code"] == "approval_expired"
        assert len(router.records("approval.expired")) == 1

    @pytest.mark.parametrize(
        "fields",
        [
            {"action": 1},
            {"action": ""},
            {"context": []},
            {"context": {str(n): 1 for n in range(65)}},
            {"agent_id": 1},
        ],
    )
    def test_an_unreadable_question_is_a_400(self, start_router: StartRouter, fields: dict[str, Any]) -> None:
        answer = start_router().evaluate(**fields)
        assert (answer.status, answer.code) == (400, "invalid_type")


def test_calls_beyond_the_concurrency_limit_wait_or_are_refused(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    limits = {"requestsPerSecond": 1000, "burst": 1000, "maxConcurrent": 1}
    router = start_router(policy=bundle(limits=limits), env={"QUEUE_LIMIT": "1", "QUEUE_WAIT_S": "20"})
    gate = threading.Event()
    held = completion()
    held.gate = gate
    provider.reply(held)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(router.chat) for _ in range(3)]
        refused = next(done for done in iter(lambda: [a for a in answers if a.done()], None) if done)[0]
        assert (refused.result().status, refused.result().code) == (503, "too_many_concurrent_calls")
        gate.set()
        assert sorted(answer.result().status for answer in answers) == [200, 200, 503]


def wait_until_closed(router: RouterProcess) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            router.request("GET", "/healthz")
        except OSError:
            return
    raise TimeoutError("the door still accepts")


def test_sigterm_lets_the_call_in_flight_finish_and_accepts_no_other(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router()
    gate = threading.Event()
    held = completion("finished")
    held.gate = gate
    provider.reply(held)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(router.chat)
        while not provider.received:
            pass
        stopped = pool.submit(router.stop)
        wait_until_closed(router)
        gate.set()
        assert answer.result().json["choices"][0]["message"]["content"] == "finished"
        assert stopped.result() == 0
    assert router.records()[-1]["type"] == "router.stopped"
    assert router.verified()
