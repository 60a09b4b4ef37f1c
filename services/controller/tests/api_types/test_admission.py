"""What is accepted, what is refused, and whether a refusal helps."""

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kars_common.errors import InvalidInputError
from kars_controller import api_types, testing

OCI = {"registry": "r", "repository": "x", "digest": "sha256:" + "a" * 64, "artifactType": "t"}


def refusal(document: dict[str, Any]) -> dict[str, str]:
    """Return the violations of a document that must be refused."""
    with pytest.raises(InvalidInputError) as caught:
        api_types.admit(document)
    assert caught.value.reason == "schema_invalid"
    return {violation.field: violation.description for violation in caught.value.violations}


def admitted(document: dict[str, Any]) -> api_types.Admitted:
    return api_types.admit(document)


def test_a_misspelt_field_is_named_with_the_closest_one() -> None:
    found = refusal(testing.sandbox(sandbox={"seccompProfil": "x"}))
    assert "did you mean seccompProfile?" in found["spec.sandbox.seccompProfil"]


def test_a_wrong_enum_says_what_was_found_and_what_is_allowed() -> None:
    found = refusal(testing.sandbox(sandbox={"isolation": "strict"}))
    assert found["spec.sandbox.isolation"] == 'got "strict", allowed: standard, enhanced, confidential'


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    bad = testing.sandbox(
        runtime={"kind": "PydanticAI", "pydanticai": {}},
        governance={"enabled": True, "trustThreshold": 9999},
        inferenceRef={"name": "other-ns/models"},
        resources={"limits": {"cpu": "lots"}},
        suspended="yes",
    )
    bad["metadata"] = {"name": "A" * 70, "label": {}}
    bad["aipVersion"] = bad.pop("apiVersion")
    found = refusal(bad)
    assert found.keys() >= {
        "aipVersion",
        "apiVersion",
        "metadata.label",
        "metadata.name",
        "metadata.namespace",
        "spec.runtime.kind",
        "spec.runtime.pydanticai",
        "spec.governance.trustThreshold",
        "spec.governance.toolPolicyRef.name",
        "spec.inferenceRef.name",
        "spec.resources.limits.cpu",
        "spec.suspended",
    }
    assert "did you mean pydanticAi?" in found["spec.runtime.pydanticai"]
    assert found["spec.suspended"] == 'got "yes", allowed: true or false'


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"runtime": {"kind": "PydanticAi"}}, "spec.runtime.pydanticAi"),
        ({"runtime": {"kind": "PydanticAi", "pydanticAi": {}, "byo": {"image": "a:b"}}}, "spec.runtime.byo"),
        (
            {"runtime": {"kind": "BYO", "byo": {"image": "a:b", "contractVersion": "v1"}}, "agent": {}},
            "spec.agent",
        ),
        (
            {"runtime": {"kind": "BYO", "byo": {"image": "a:b", "contractVersion": "v999"}}},
            "spec.runtime.byo.contractVersion",
        ),
        ({"governance": {"enabled": True}}, "spec.governance.toolPolicyRef.name"),
        (
            {"governance": {"mcpServerRef": {"name": "a"}, "mcpServerRefs": [{"name": "b"}]}},
            "spec.governance.mcpServerRef",
        ),
        (
            {"governance": {"mcpServerRefs": [{"name": "b"}, {"name": "b"}]}},
            "spec.governance.mcpServerRefs[1].name",
        ),
        (
            {"governance": {"mcpServerRefs": [{"name": f"s{n}"} for n in range(9)]}},
            "spec.governance.mcpServerRefs",
        ),
        (
            {"networkPolicy": {"allowedEndpoints": [{"port": 1}]}},
            "spec.networkPolicy.allowedEndpoints[0].host",
        ),
        (
            {"networkPolicy": {"allowedEndpoints": [{"host": "a", "port": 70000}]}},
            "spec.networkPolicy.allowedEndpoints[0].port",
        ),
        (
            {"runtime": {"kind": "PydanticAi", "pydanticAi": {"agentCode": {}}}},
            "spec.runtime.pydanticAi.agentCode",
        ),
        (
            {
                "runtime": {
                    "kind": "PydanticAi",
                    "pydanticAi": {"agentCode": {"git": {"url": "u"}, "oci": {"image": "i"}}},
                }
            },
            "spec.runtime.pydanticAi.agentCode",
        ),
        (
            {"runtime": {"kind": "PydanticAi", "pydanticAi": {"agentCode": {"local": {"path": "../etc"}}}}},
            "spec.runtime.pydanticAi.agentCode.local.path",
        ),
        (
            {"runtime": {"kind": "PydanticAi", "pydanticAi": {"extraEnv": {"A": 1}}}},
            "spec.runtime.pydanticAi.extraEnv.A",
        ),
        ({"inferenceRef": {"name": ""}}, "spec.inferenceRef.name"),
    ],
)
def test_sandboxes_that_are_refused(change: dict[str, Any], field: str) -> None:
    assert field in refusal(testing.sandbox(**change))


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ({"runtime": {"kind": "PydanticAi", "pydanticAi": None}}, "runtime.pydanticAi.extraEnv", {}),
        ({"sandbox": None}, "sandbox.isolation", "enhanced"),
        ({"sandbox": {"selinuxContext": '\\"\\"'}}, "sandbox.selinuxContext", ""),
        (
            {"networkPolicy": {"allowedEndpoints": ["api.example.com"]}},
            "networkPolicy.allowedEndpoints",
            [{"host": "api.example.com", "port": 443}],
        ),
        (
            {"networkPolicy": {"allowedEndpoints": [{"host": "h", "name": "n"}]}},
            "networkPolicy.allowedEndpoints",
            [{"host": "h", "port": 443, "name": "n"}],
        ),
        (
            {"governance": {}},
            "governance",
            {"enabled": False, "trustThreshold": 500, "registryMode": "local", "mcpServerRefs": []},
        ),
        (
            {"runtime": {"kind": "BYO", "byo": {"image": "a:b"}}},
            "runtime.byo.contractVersion",
            "v1",
        ),
        ({"networkPolicy": {}}, "networkPolicy", {"defaultDeny": True, "egressMode": "Learn"}),
    ],
)
def test_short_forms_and_defaults(change: dict[str, Any], path: str, expected: object) -> None:
    found: Any = admitted(testing.sandbox(**change)).document["spec"]
    for step in path.split("."):
        found = found[step]
    assert found == expected


def test_an_absent_governance_block_stays_absent() -> None:
    document = testing.sandbox()
    del document["spec"]["governance"]
    assert "governance" not in admitted(document).document["spec"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memoryRef": {"name": "m"}}, "spec.memoryRef"),
        ({"networkPolicy": {"allowedEndpoints": ["a.example"]}}, "spec.networkPolicy.allowedEndpoints"),
        ({"networkPolicy": {"allowlistRef": OCI}}, "spec.networkPolicy.allowlistRef"),
        ({"networkPolicy": {"defaultDeny": False}}, "spec.networkPolicy.defaultDeny"),
        ({"sandbox": {"isolation": "confidential"}}, "spec.sandbox.isolation"),
        ({"sandbox": {"allowPrivilegeEscalation": True}}, "spec.sandbox.allowPrivilegeEscalation"),
        ({"sandbox": {"writablePaths": ["/data"]}}, "spec.sandbox.writablePaths"),
        ({"governance": {"enabled": False}}, "spec.governance.enabled is false"),
        ({"azureServices": [{"service": "storage"}]}, "spec.azureServices"),
        ({"a2a": {"enabled": True}}, "spec.a2a"),
    ],
)
def test_what_is_accepted_and_not_enforced_is_said(change: dict[str, Any], words: str) -> None:
    warnings = admitted(testing.sandbox(**change)).warnings
    assert any(warning.startswith(words) for warning in warnings), warnings


def test_a_plain_sandbox_has_no_warnings() -> None:
    assert admitted(testing.sandbox()).warnings == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tokenBudget": {"dailyTokens": 10, "monthlyTokens": 5}}, "spec.tokenBudget.monthlyTokens"),
        ({"tokenBudget": {"perRequestTokens": 10, "monthlyTokens": 5}}, "spec.tokenBudget.monthlyTokens"),
        ({"tokenBudget": {"dailyTokens": -1}}, "spec.tokenBudget.dailyTokens"),
        ({"tokenBudget": {"dailyTokens": "10"}}, "spec.tokenBudget.dailyTokens"),
        ({"tokenBudget": {"dailyTokens": True}}, "spec.tokenBudget.dailyTokens"),
        ({"contentSafety": {"hate": "medium"}}, "spec.contentSafety.hate"),
        (
            {"modelPreference": {"primary": {"provider": "", "deployment": "m"}}},
            "spec.modelPreference.primary.provider",
        ),
        ({"bundleRef": OCI}, "spec.modelPreference"),
        ({"appliesTo": {"action": "everything"}}, "spec.appliesTo.action"),
        ({"appliesTo": None}, "spec.appliesTo"),
    ],
)
def test_inference_policies_that_are_refused(change: dict[str, Any], field: str) -> None:
    assert field in refusal(testing.inference_policy(**change))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"appliesTo": {}}, "spec.appliesTo.sandboxMatchLabels"),
        ({"agtProfile": {"inline": "a", "bundleRef": OCI}}, "spec.agtProfile.bundleRef"),
        ({"agtProfile": {"inline": "a: &x [*x]"}}, "spec.agtProfile.inline"),
        ({"approval": {"mode": "sometimes"}}, "spec.approval.mode"),
        ({"approval": {"mode": "aboveThreshold"}}, "spec.approval.threshold"),
        ({"rateLimit": {"burst": 5}}, "spec.rateLimit.rps"),
        ({"rateLimit": {"rps": 1, "burst": 0}}, "spec.rateLimit.burst"),
        ({"rateLimit": {"rps": 1, "window": "soon"}}, "spec.rateLimit.window"),
    ],
)
def test_tool_policies_that_are_refused(change: dict[str, Any], field: str) -> None:
    assert field in refusal(testing.tool_policy(**change))


def test_an_empty_label_selector_is_accepted_with_a_warning() -> None:
    warnings = admitted(testing.tool_policy(appliesTo={"sandboxMatchLabels": {}})).warnings
    assert any("sandboxMatchLabels" in warning for warning in warnings)


def test_names_of_59_characters_are_refused_because_their_namespace_would_not_fit() -> None:
    assert admitted(testing.sandbox("a" * 58)).warnings == ()
    assert "at most 58" in refusal(testing.sandbox("a" * 59))["metadata.name"]


def test_admission_is_idempotent() -> None:
    for document in (testing.sandbox(), testing.inference_policy(), testing.tool_policy()):
        once = admitted(document).document
        assert admitted(copy.deepcopy(once)).document == once


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    ["runtime", "sandbox", "inferenceRef", "governance", "networkPolicy", "resources", "agent"]
)


@settings(max_examples=200, deadline=None)
@given(field=_FIELDS, value=_JSON)
def test_no_value_anywhere_breaks_the_validator(field: str, value: Any) -> None:
    with contextlib.suppress(InvalidInputError):
        api_types.admit(testing.sandbox(**{field: value}))
