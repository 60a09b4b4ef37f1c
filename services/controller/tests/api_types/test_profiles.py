"""AGT profiles: read safely, ordered by priority, refused with all that is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kars.policy.v1 import policy_pb2
from kars_common.errors import InvalidInputError
from kars_controller import profiles

HEAD = 'version: "1.0"\nagent: a\n'


def paths(text: str) -> set[str]:
    return {problem.path for problem in profiles.problems(text)}


def test_router_register_19_rules_come_by_priority_then_file_order() -> None:
    text = HEAD + (
        "policies:\n"
        "  - {name: low, type: capability, allowed_actions: [a], priority: 1}\n"
        "  - {name: high, type: capability, denied_actions: [b], priority: 9}\n"
        "  - {name: low-too, type: capability, allowed_actions: [c], priority: 1}\n"
    )
    assert [rule.name for rule in profiles.parse(text).rules] == ["high", "low", "low-too"]


def test_all_rule_types_are_read() -> None:
    text = HEAD + (
        "defaultAction: deny\n"
        "policies:\n"
        "  - {name: c, type: capability, denied_actions: ['shell:rm'], conditions: {tool: [x, y], n: 5}}\n"
        "  - {name: a, type: approval, actions: ['tool:pay:*'], min_approvals: 2}\n"
        "  - {name: r, type: rate_limit, actions: ['inference:*'], max_calls: 5, window: 2m}\n"
    )
    parsed = profiles.parse(text)
    capability, approval, limit = parsed.rules
    assert parsed.default_verdict == policy_pb2.VERDICT_DENY
    assert [(item.key, list(item.any_of)) for item in capability.conditions] == [
        ("tool", ["x", "y"]),
        ("n", ["5"]),
    ]
    assert (approval.approval.min_approvals, limit.rate_limit.window_ms) == (2, 120_000)


def test_without_a_default_action_the_profile_allows_as_existing_manifests_mean_it() -> None:
    assert profiles.parse(HEAD).default_verdict == policy_pb2.VERDICT_ALLOW


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("polices: []\n", ".polices"),
        ("policies: {}\n", ".policies"),
        ("defaultAction: maybe\n", ".defaultAction"),
        ("policies: [{name: a, type: firewall}]\n", ".policies[0].type"),
        ("policies: [{name: a, type: capability, deny: [x]}]\n", ".policies[0].deny"),
        ("policies: [{type: capability}]\n", ".policies[0].name"),
        ("policies: [{name: a, type: capability}, {name: a, type: capability}]\n", ".policies[1].name"),
        ("policies: [{name: a, type: capability, denied_actions: rm}]\n", ".policies[0].denied_actions"),
        ("policies: [{name: a, type: capability, denied_actions: ['']}]\n", ".policies[0].denied_actions[0]"),
        ("policies: [{name: a, type: approval}]\n", ".policies[0].actions"),
        (
            "policies: [{name: a, type: approval, actions: [x], min_approvals: 0}]\n",
            ".policies[0].min_approvals",
        ),
        (
            "policies: [{name: a, type: approval, actions: [x], min_approvals: 33}]\n",
            ".policies[0].min_approvals",
        ),
        ("policies: [{name: a, type: rate_limit, actions: [x], window: 1s}]\n", ".policies[0].max_calls"),
        (
            "policies: [{name: a, type: rate_limit, actions: [x], max_calls: 1, window: 0s}]\n",
            ".policies[0].window",
        ),
        ("policies: [{name: a, type: capability, conditions: {k: {}}}]\n", ".policies[0].conditions.k"),
        ("policies: [{name: a, type: capability, priority: high}]\n", ".policies[0].priority"),
    ],
)
def test_profiles_that_are_refused(body: str, path: str) -> None:
    assert path in paths(HEAD + body)
    with pytest.raises(InvalidInputError):
        profiles.parse(HEAD + body)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: *a\n",
        "!!python/object/apply:os.system ['true']\n",
        "a: !!binary aGk=\n",
        "a: 1\na: 2\n",
        "[" * 40 + "]" * 40,
        "- 1\n" * 30_000,
        "a: b: c",
        "\x00",
        "a" * (300 * 1024),
        "? [x]\n: 1\n",
        "--- 1\n--- 2\n",
    ],
)
def test_hostile_yaml_is_refused_whole(text: str) -> None:
    assert "" in paths(text)


def test_the_words_yes_and_a_date_stay_text() -> None:
    assert paths("version: yes\nagent: 2026-01-01\n") == set()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    list(profiles.problems(text))
