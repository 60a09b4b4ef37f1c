"""Names, limits and defaults that people's manifests rest on, written down once more on purpose.

The definitions are generated, so a slip in a model would change them without a word. Here it has a word.
"""

from typing import Any

import pytest
from kars_controller.api_types import kind_named
from kars_controller.crds import definitions

NAMES = {
    "KarsSandbox": ("karssandboxes", "cs", "Namespaced"),
    "InferencePolicy": ("inferencepolicies", "ip", "Namespaced"),
    "ToolPolicy": ("toolpolicies", "tp", "Namespaced"),
    "KarsMemory": ("karsmemories", "cmem", "Namespaced"),
    "McpServer": ("mcpservers", "mcp", "Namespaced"),
    "A2AAgent": ("a2aagents", "a2a", "Namespaced"),
    "KarsEval": ("karsevals", "ceval", "Namespaced"),
    "EgressApproval": ("egressapprovals", "eappr", "Namespaced"),
    "TrustGraph": ("trustgraphs", "tg", "Cluster"),
    "KarsSREAction": ("karssreactions", "sreaction", "Namespaced"),
    "KarsAuthConfig": ("karsauthconfigs", "kac", "Cluster"),
    "KarsPairing": ("karspairings", "cp", "Namespaced"),
}
LIMITS: list[tuple[str, str, dict[str, Any]]] = [
    ("KarsSandbox", "sandbox.isolation", {"enum": ["standard", "enhanced", "confidential"]}),
    ("KarsSandbox", "governance.trustThreshold", {"minimum": 0, "maximum": 1000}),
    ("KarsSandbox", "governance.registryMode", {"enum": ["local", "global"]}),
    ("KarsSandbox", "governance.mcpServerRefs", {"maxItems": 8}),
    ("KarsSandbox", "networkPolicy.egressMode", {"enum": ["Strict", "Learn"]}),
    ("KarsSandbox", "networkPolicy.allowedEndpoints[].port", {"minimum": 1, "maximum": 65535}),
    ("KarsSandbox", "inferenceRef.name", {"maxLength": 253}),
    ("KarsSandbox", "runtime.byo.contractVersion", {"enum": ["v1"]}),
    (
        "InferencePolicy",
        "appliesTo.action",
        {"enum": ["chat", "responses", "image", "embeddings", "*"]},
    ),
    ("InferencePolicy", "contentSafety.hate", {"enum": ["Safe", "Low", "Medium", "High"]}),
    ("InferencePolicy", "tokenBudget.dailyTokens", {"minimum": 0, "format": "int64"}),
    ("KarsMemory", "storeName", {"minLength": 1, "maxLength": 63}),
    ("KarsMemory", "scope", {"minLength": 1, "maxLength": 256, "pattern": "^[A-Za-z0-9_./%+@-]+$"}),
    ("KarsMemory", "retentionDays", {"minimum": 1}),
    ("McpServer", "oauth.pkce", {"enum": ["S256"]}),
    ("A2AAgent", "signingKeys", {"minItems": 1}),
    ("A2AAgent", "signingKeys[].alg", {"enum": ["EdDSA"]}),
    ("A2AAgent", "federation[].kind", {"enum": ["in-cluster", "external"]}),
    ("KarsEval", "corpus.builtin", {"minLength": 1, "maxLength": 253}),
    ("KarsEval", "schedule", {"minLength": 1, "maxLength": 256}),
    ("KarsEval", "displayName", {"minLength": 1, "maxLength": 256}),
    ("KarsEval", "runnerImage", {"minLength": 1, "maxLength": 512}),
    ("EgressApproval", "sandbox", {"minLength": 1, "maxLength": 253}),
    ("EgressApproval", "hosts", {"minItems": 1, "maxItems": 16}),
    ("EgressApproval", "hosts[].host", {"minLength": 1, "maxLength": 253}),
    ("EgressApproval", "hosts[].port", {"minimum": 1, "maximum": 65535}),
    ("EgressApproval", "reason", {"minLength": 1, "maxLength": 512}),
    ("EgressApproval", "ticket", {"minLength": 1, "maxLength": 128}),
    ("TrustGraph", "vertices", {"minItems": 1}),
    ("TrustGraph", "edges[].score", {"minimum": 0, "maximum": 1000}),
    ("KarsSREAction", "approval.state", {"enum": ["Pending", "Approved", "Rejected"]}),
    ("KarsSREAction", "approval.note", {"maxLength": 512}),
    ("KarsSREAction", "ttlMinutes", {"minimum": 1, "maximum": 60}),
    ("KarsSREAction", "diagnosis", {"maxLength": 512}),
    ("KarsSREAction", "rationale", {"maxLength": 2048}),
    ("KarsSREAction", "action.params.replicas", {"minimum": 0, "maximum": 50}),
    ("KarsAuthConfig", "meshAuthBackend", {"enum": ["Anonymous", "EntraAgentIdentity"]}),
    (
        "KarsAuthConfig",
        "controller.credentialMode",
        {"enum": ["ManagedIdentityImds", "WorkloadIdentity"]},
    ),
    ("KarsPairing", "slotsMax", {"minimum": 1}),
    ("KarsPairing", "tokenBudget", {"minimum": 0}),
    ("KarsPairing", "isolation", {"enum": ["standard", "enhanced", "confidential"]}),
]
DEFAULTS: list[tuple[str, str, Any]] = [
    ("KarsSandbox", "sandbox", {}),
    ("KarsSandbox", "sandbox.isolation", "enhanced"),
    ("KarsSandbox", "sandbox.seccompProfile", "kars-strict"),
    ("KarsSandbox", "sandbox.readOnlyRootFilesystem", True),
    ("KarsSandbox", "sandbox.runAsNonRoot", True),
    ("KarsSandbox", "sandbox.allowPrivilegeEscalation", False),
    ("KarsSandbox", "sandbox.writablePaths", ["/sandbox", "/tmp"]),
    ("KarsSandbox", "governance.enabled", False),
    ("KarsSandbox", "governance.trustThreshold", 500),
    ("KarsSandbox", "governance.registryMode", "local"),
    ("KarsSandbox", "networkPolicy.defaultDeny", True),
    ("KarsSandbox", "networkPolicy.egressMode", "Learn"),
    ("KarsSandbox", "networkPolicy.allowedEndpoints[].port", 443),
    ("McpServer", "oauth.pkce", "S256"),
    ("A2AAgent", "productionMode", False),
    ("A2AAgent", "trust.requireSignedRequests", False),
    ("EgressApproval", "hosts[].port", 443),
    ("KarsSREAction", "ttlMinutes", 15),
    ("KarsAuthConfig", "tenant.authorityHost", "https://login.microsoftonline.com/"),
    ("KarsAuthConfig", "meshAuthBackend", "Anonymous"),
    ("KarsPairing", "slotsMax", 1),
    ("KarsPairing", "tokenBudget", 500_000),
    ("KarsPairing", "capabilities", ["offload", "handoff"]),
]


def field(kind_name: str, path: str) -> dict[str, Any]:
    """Return the schema of a field of a spec."""
    here: dict[str, Any] = definition(kind_name)["versions"][0]["schema"]["openAPIV3Schema"]
    here = here["properties"]["spec"]
    for step in path.split("."):
        here = here["properties"][step.removesuffix("[]")]
        here = here["items"] if step.endswith("[]") else here
    return here


def definition(kind_name: str) -> dict[str, Any]:
    """Return the spec of a kind's definition."""
    kind = kind_named(kind_name)
    assert kind is not None
    found: dict[str, Any] = definitions.of(kind)["spec"]
    return found


@pytest.mark.parametrize("kind", NAMES)
def test_a_kind_has_the_names_that_people_type(kind: str) -> None:
    found = definition(kind)
    plural, short, scope = NAMES[kind]
    assert (found["names"]["plural"], found["scope"]) == (plural, scope)
    assert found["names"]["shortNames"] == [short]
    assert (found["group"], found["versions"][0]["name"]) == ("kars.azure.com", "v1alpha1")


@pytest.mark.parametrize(("kind", "path", "limits"), LIMITS)
def test_a_limit_is_what_was_promised(kind: str, path: str, limits: dict[str, Any]) -> None:
    schema = field(kind, path)
    assert {name: schema.get(name) for name in limits} == limits


@pytest.mark.parametrize(("kind", "path", "default"), DEFAULTS)
def test_a_default_is_what_was_promised(kind: str, path: str, default: Any) -> None:
    assert field(kind, path)["default"] == default


def test_an_absent_governance_block_stays_absent() -> None:
    # Absent and empty mean different things: kars-default governs, or nobody does.
    assert "default" not in field("KarsSandbox", "governance")
    assert "default" not in field("KarsSandbox", "networkPolicy")
