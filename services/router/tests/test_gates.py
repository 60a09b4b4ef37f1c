"""Each gate is made to refuse in turn, for whole answers and for streams: same code, same record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from kars_router_testkit import FakeProvider, HttpAnswer, Reply, bundle, completion, sse_completion
from kars_router_testkit.fixtures import StartRouter
from kars_router_testkit.policies import approval, capability

SHIELDS: dict[str, Any] = {
    "prompt_filter_results": [
        {"prompt_index": 0, "content_filter_results": {"jailbreak": {"detected": False}}}
    ]
}
VIOLENT = {"content_filter_results": {"violence": {"severity": "high", "filtered": False}}}
TOOL = ("publish", '{"path":"q3.md"}')


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One way to be refused.

    Attributes:
        reaches_provider: whether the provider is asked before the refusal.
        charged: tokens charged afterwards, -1 for the reserved maximum; None where nothing was reserved.
    """

    gate: str
    status: int
    code: str
    policy: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    whole: Callable[[], Reply] | None = None
    streamed: Callable[[], Reply] | None = None
    env: dict[str, str] = field(default_factory=dict)
    reaches_provider: bool = False
    charged: int | None = None
    charged_streamed: int | None = None
    no_policy: bool = False


REFUSALS = {
    "identify": Refusal(gate="identify", status=403, code="no_policy_in_force", no_policy=True),
    "rate_limit": Refusal(
        gate="rate_limit",
        status=429,
        code="rate_limit_exceeded",
        policy={"limits": {"requestsPerSecond": 1, "burst": 1}},
    ),
    "decide_model": Refusal(gate="decide", status=403, code="policy_denied", request={"model": "other"}),
    "decide_rule": Refusal(
        gate="decide",
        status=403,
        code="policy_denied",
        policy={"rules": [capability("no", deny=["inference:*"])]},
    ),
    "reserve_cap": Refusal(
        gate="reserve",
        status=429,
        code="per_request_tokens_exceeded",
        policy={"budget": {"perRequestTokens": "100"}},
        request={"max_tokens": 101},
    ),
    "reserve_day": Refusal(
        gate="reserve",
        status=429,
        code="budget_exceeded",
        policy={"budget": {"dailyTokens": "100"}},
        request={"max_tokens": 101},
    ),
    "reserve_month": Refusal(
        gate="reserve",
        status=429,
        code="budget_exceeded",
        policy={"budget": {"monthlyTokens": "100"}},
        request={"max_tokens": 101},
    ),
    "guard_input": Refusal(
        gate="guard_input",
        status=413,
        code="request_too_large",
        policy={"limits": {"requestsPerSecond": 1000, "burst": 1000, "maxRequestBytes": "10"}},
    ),
    "dispatch_error": Refusal(
        gate="dispatch",
        status=500,
        code="provider_error",
        whole=lambda: Reply(status=500),
        streamed=lambda: Reply(status=500),
        reaches_provider=True,
        charged=0,
    ),
    "dispatch_reset": Refusal(
        gate="dispatch",
        status=502,
        code="bad_gateway",
        whole=lambda: Reply(reset=True),
        streamed=lambda: Reply(reset=True),
        reaches_provider=True,
        charged=-1,
    ),
    "guard_output_safety": Refusal(
        gate="guard_output",
        status=403,
        code="inference_policy_content_safety_exceeded",
        policy={"safety": {"violence": "SEVERITY_LOW"}},
        whole=lambda: completion(choice_extra=VIOLENT),
        streamed=lambda: sse_completion(["x"], choice_extra=VIOLENT),
        reaches_provider=True,
        charged=15,
        charged_streamed=-1,  # the stream is cut before its usage event: the maximum counts
    ),
    "guard_output_shields": Refusal(
        gate="guard_output",
        status=403,
        code="inference_policy_prompt_shields_required",
        policy={"safety": {"requirePromptShields": True}},
        whole=completion,
        streamed=sse_completion,
        reaches_provider=True,
        charged=15,
        charged_streamed=-1,
    ),
    "guard_output_tool": Refusal(
        gate="guard_output",
        status=403,
        code="policy_denied",
        policy={"rules": [capability("no", deny=["tool:publish:*"])]},
        whole=lambda: completion(None, tools=[TOOL]),
        streamed=lambda: sse_completion([], tools=[TOOL]),
        reaches_provider=True,
        charged=15,
    ),
    "guard_output_approval": Refusal(
        gate="guard_output",
        status=403,
        code="approval_expired",
        policy={"rules": [approval("ask", ["tool:publish:*"])]},
        whole=lambda: completion(None, tools=[TOOL]),
        streamed=lambda: sse_completion([], tools=[TOOL]),
        env={"APPROVAL_TIMEOUT_S": "0.2"},
        reaches_provider=True,
        charged=15,
    ),
}


def refused(answer: HttpAnswer) -> tuple[int, str]:
    """Return status and code, also when the refusal is the last event of a stream that had begun."""
    if answer.status == 200:
        return 200, str(answer.events[-1]["error"]["code"])
    return answer.status, answer.code


@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("name", REFUSALS)
def test_each_gate_refuses_and_the_refusal_is_recorded(
    start_router: StartRouter, provider: FakeProvider, name: str, streamed: bool
) -> None:
    case = REFUSALS[name]
    router = start_router(policy=None if case.no_policy else bundle(**case.policy), env=case.env)
    if case.gate == "rate_limit":
        assert router.chat().status == 200
        provider.received.clear()
    make = case.streamed if streamed else case.whole
    if make is not None:
        provider.reply(make())
    answer = router.chat(stream=streamed, **case.request)
    status, code = refused(answer)
    assert code == case.code
    # A stream may have begun before its end was refused; its text then ends in the error event.
    assert status == case.status or (streamed and status == 200 and case.gate == "guard_output")
    assert bool(provider.received) is case.reaches_provider
    if streamed and status == 200:
        assert not any("tool_calls" in str(event) for event in answer.events)
        assert not any(
            choice.get("finish_reason") for event in answer.events for choice in event.get("choices", ())
        )
    kind = "call.settled" if case.reaches_provider else "call.denied"
    record = router.records(kind)[-1]
    assert (record["gate"], record["reason"]) == (case.gate, case.code)
    charged = case.charged_streamed if streamed and case.charged_streamed is not None else case.charged
    if charged is not None:
        expected = router.records("call.admitted")[-1]["reserved"] if charged == -1 else charged
        assert record["charged"] == expected


@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
def test_retry_after_is_told_with_every_429(start_router: StartRouter, streamed: bool) -> None:
    router = start_router(policy=bundle(budget={"dailyTokens": "100"}))
    answer = router.chat(max_tokens=200, stream=streamed)
    assert 0 < int(answer.headers["retry-after"]) <= 86_400
    assert answer.headers["x-kars-decision"] == "BudgetExceeded"
    assert answer.headers["x-should-retry"] == "false"


def test_a_safe_annotated_answer_passes_the_floor(start_router: StartRouter, provider: FakeProvider) -> None:
    router = start_router(policy=bundle(safety={"violence": "SEVERITY_LOW", "requirePromptShields": True}))
    safe: dict[str, Any] = {"content_filter_results": {"violence": {"severity": "safe", "filtered": False}}}
    provider.reply(completion(extra=SHIELDS, choice_extra=safe))
    assert router.chat().status == 200
    first: dict[str, Any] = {**SHIELDS, "choices": []}
    provider.reply(sse_completion(["fine"], first=first, choice_extra=safe))
    assert router.chat(stream=True).text == "fine"


def test_a_detected_attack_is_refused_where_shields_are_required(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router(policy=bundle(safety={"requirePromptShields": True}))
    found = {"prompt_filter_results": [{"content_filter_results": {"jailbreak": {"detected": True}}}]}
    provider.reply(completion(extra=found))
    assert router.chat().code == "inference_policy_content_safety_exceeded"


def test_a_streams_text_stops_at_the_first_event_above_the_floor(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router(policy=bundle(safety={"violence": "SEVERITY_LOW"}))
    good, bad = sse_completion(["good "]).parts, sse_completion(["BAD"], choice_extra=VIOLENT).parts
    provider.reply(Reply(parts=[*good[:2], *bad[1:]], content_type="text/event-stream"))
    answer = router.chat(stream=True)
    assert answer.text == "good "
    assert b"BAD" not in answer.body
    assert answer.events[-1]["error"]["code"] == "inference_policy_content_safety_exceeded"
