"""Policies compiled: digests byte for byte, budgets, limits, and what cannot be used."""

import hashlib
from typing import Any

import pytest
from kars.policy.v1 import policy_pb2
from kars_common.errors import FailedPreconditionError
from kars_controller import api_types, testing
from kars_controller.api_types import parse_spec
from kars_controller.compile import bundle, digests, governance, inference


def spec_of(document: dict[str, Any]) -> Any:
    return parse_spec(api_types.admit(document).document)


def test_the_inference_artefact_is_byte_exact() -> None:
    spec = spec_of(
        testing.inference_policy(
            appliesTo={"sandboxName": "ä", "sandboxMatchLabels": {"b": "2", "a": "1"}},
            tokenBudget={"dailyTokens": 5},
            contentSafety={"selfHarm": "Low"},
        )
    )
    assert digests.inference_policy_body(spec).decode() == (
        '{"appliesTo":{"sandboxName":"ä","sandboxMatchLabels":{"a":"1","b":"2"},"action":null},'
        '"tokenBudget":{"perRequestTokens":null,"dailyTokens":5,"monthlyTokens":null},'
        '"contentSafety":{"hate":null,"selfHarm":"Low","sexual":null,"violence":null,"requirePromptShields":null},'
        '"modelPreference":{"primary":{"provider":"openai","deployment":"gpt"},"fallback":[]},"displayName":null}'
    )


def test_absent_blocks_are_explicit_nulls() -> None:
    spec = spec_of(testing.document("InferencePolicy", "p", {"appliesTo": {}}))
    assert digests.inference_policy_body(spec) == (
        b'{"appliesTo":{"sandboxName":null,"sandboxMatchLabels":{},"action":null},"tokenBudget":null,'
        b'"contentSafety":null,"modelPreference":null,"displayName":null}'
    )


def test_a_content_digest_frames_name_and_body() -> None:
    framed = b"\0" * 7 + b"\x01" + b"n" + b"\0" * 7 + b"\x02" + b"xy"
    assert digests.content_digest("n", b"xy") == "sha256:" + hashlib.sha256(framed).hexdigest()
    assert digests.content_digest("nx", b"y") != digests.content_digest("n", b"xy")


def test_the_profile_digest_covers_the_inline_text_byte_for_byte() -> None:
    one = spec_of(testing.tool_policy())
    other = spec_of(testing.tool_policy(agtProfile={"inline": testing.DENY_PROFILE + "\n"}))
    expected = digests.content_digest("agt-profile.yaml", testing.DENY_PROFILE.encode())
    assert bundle.tool_digest(one) == expected
    assert bundle.tool_digest(other) != expected


def test_budgets_models_and_ceilings_reach_the_bundle() -> None:
    rules = inference.compile_inference(
        spec_of(
            testing.inference_policy(
                tokenBudget={"perRequestTokens": 1, "dailyTokens": 2, "monthlyTokens": 3},
                contentSafety={"hate": "Safe", "violence": "High", "requirePromptShields": True},
                modelPreference={
                    "primary": {"provider": "a", "deployment": "m"},
                    "fallback": [{"provider": "b", "deployment": "n"}],
                },
            )
        )
    )
    assert [(model.provider, model.deployment) for model in rules.models] == [("a", "m"), ("b", "n")]
    budget = rules.token_budget
    assert (budget.per_request_tokens, budget.daily_tokens, budget.monthly_tokens) == (1, 2, 3)
    safety = rules.content_safety
    assert (safety.hate, safety.sexual, safety.violence) == (
        policy_pb2.SEVERITY_SAFE,
        policy_pb2.SEVERITY_UNSPECIFIED,
        policy_pb2.SEVERITY_HIGH,
    )
    assert safety.require_prompt_shields


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rateLimit": {"rps": 99, "burst": 200}}, ("*", 99, 200, False)),
        ({"rateLimit": {"rps": 2, "window": "60s"}}, ("*", 2, 120, False)),
        ({"rateLimit": {"rps": 3}}, ("*", 3, 3, False)),
        ({"approval": {"mode": "always", "channel": "ops"}}, ("*", 0, 0, True)),
        ({"approval": {"mode": "aboveThreshold", "threshold": "5"}}, ("*", 0, 0, True)),
    ],
)
def test_limits_of_a_tool_are_really_compiled(change: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (rule,) = governance.compile_governance(spec_of(testing.tool_policy(**change))).tools
    assert (rule.tool, rule.rate_rps, rule.rate_burst, rule.approval_required) == expected


@pytest.mark.parametrize("change", [{}, {"approval": {"mode": "never"}}, {"rateLimit": {"rps": 0}}])
def test_without_limits_there_is_no_tool_rule(change: dict[str, Any]) -> None:
    assert not governance.compile_governance(spec_of(testing.tool_policy(**change))).tools


def test_a_policy_for_one_tool_limits_that_tool_only() -> None:
    policy = testing.tool_policy(
        appliesTo={"sandboxMatchLabels": {"a": "b"}, "tool": "pay"}, approval={"mode": "always"}
    )
    (rule,) = governance.compile_governance(spec_of(policy)).tools
    assert rule.tool == "pay"


@pytest.mark.parametrize("profile", [None, {}, {"inline": "  "}])
def test_a_tool_policy_without_a_profile_cannot_govern(profile: object) -> None:
    with pytest.raises(FailedPreconditionError) as refusal:
        governance.compile_governance(spec_of(testing.tool_policy(agtProfile=profile)))
    assert refusal.value.reason == "policy_not_usable"


def test_the_content_digest_ignores_version_and_time_only() -> None:
    one = policy_pb2.PolicyBundle(version=1)
    two = policy_pb2.PolicyBundle(version=2)
    two.issued_at.GetCurrentTime()
    assert bundle.content_digest(one) == bundle.content_digest(two)
    two.governance.default_verdict = policy_pb2.VERDICT_ALLOW
    assert bundle.content_digest(one) != bundle.content_digest(two)
