"""Manifests that break one rule in CEL each; a test compares them with the rules that the models declare."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kars_controller import testing

from services.controller.tests.kubernetes.samples import APPROVAL, OCI, PROPOSAL, RUNTIMES, cluster_wide


@dataclass(frozen=True, kw_only=True)
class BrokenRule:
    """A manifest, the field that is to blame, and what the rule says."""

    document: dict[str, Any]
    field: str
    message: str
    stored: tuple[dict[str, Any], ...] = ()
    """What is there before, state by state, where a rule is about the change."""


def every_rule() -> Iterator[BrokenRule]:
    """Yield at least one manifest for each rule of each kind."""
    yield from _sandboxes()
    yield from _policies()
    yield from _memories()
    yield from _servers()
    yield from _agents()
    yield from _others()
    yield from _actions()
    yield from _changes()


def declared(schema: Mapping[str, Any], path: str = "spec") -> Iterator[tuple[str, str]]:
    """Yield (field, message) of the rules in a schema, places in lists and maps as `[]`."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"{path}{rule.get('fieldPath', '')}", rule["message"]
    for name, inner in schema.get("properties", {}).items():
        yield from declared(inner, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from declared(schema[keyword], f"{path}[]")


def _sandboxes() -> Iterator[BrokenRule]:
    variants = {**RUNTIMES, "OpenClaw": "openclaw", "BYO": "byo"}
    byo = {"image": "i:1", "contractVersion": "v1"}
    for kind, variant in variants.items():
        message = f"{variant} is required when kind is {kind}, and not allowed otherwise"
        missing = testing.sandbox(runtime={"kind": kind})
        yield BrokenRule(document=missing, field=f"spec.runtime.{variant}", message=message)
        other = "Hermes" if kind == "PydanticAi" else "PydanticAi"
        beside: dict[str, Any] = {"kind": other, variants[other]: {}, variant: byo if kind == "BYO" else {}}
        yield BrokenRule(
            document=testing.sandbox(runtime=beside), field=f"spec.runtime.{variant}", message=message
        )
        if kind == "OpenClaw":
            continue
        both = {"oci": {"image": "i"}, "git": {"url": "u"}}
        for code in ({}, both):
            adapter = {**(byo if kind == "BYO" else {}), "agentCode": code}
            yield BrokenRule(
                document=testing.sandbox(runtime={"kind": kind, variant: adapter}),
                field=f"spec.runtime.{variant}.agentCode",
                message="allowed: exactly one of oci, git, local",
            )
    yield BrokenRule(
        document=testing.sandbox(runtime={"kind": "BYO", "byo": byo}, agent={}),
        field="spec.agent",
        message="not allowed when spec.runtime.kind is BYO",
    )
    for governance, field, message in (
        ({"enabled": True}, ".toolPolicyRef.name", "is required when spec.governance.enabled is true"),
        (
            {"mcpServerRef": {"name": "a"}, "mcpServerRefs": [{"name": "b"}]},
            ".mcpServerRef",
            "not allowed beside mcpServerRefs; use mcpServerRefs only",
        ),
        ({"mcpServerRefs": [{"name": "b"}, {"name": "b"}]}, ".mcpServerRefs", "names must be unique"),
    ):
        document = testing.sandbox(governance=governance)
        yield BrokenRule(document=document, field=f"spec.governance{field}", message=message)


def _beside_bundle(document: dict[str, Any], **inline: Any) -> Iterator[BrokenRule]:
    for name, value in inline.items():
        changed = copy.deepcopy(document)
        changed["spec"][name] = value
        yield BrokenRule(
            document=changed,
            field=f"spec.{name}",
            message="not allowed beside spec.bundleRef; keep one of them",
        )


def _policies() -> Iterator[BrokenRule]:
    for part in ("dailyTokens", "perRequestTokens"):
        yield BrokenRule(
            document=testing.inference_policy(tokenBudget={part: 10, "monthlyTokens": 5}),
            field="spec.tokenBudget.monthlyTokens",
            message=f"allowed: at least {part}, or leave it out",
        )
    signed = testing.document("InferencePolicy", "signed", {"appliesTo": {}, "bundleRef": OCI})
    model = {"primary": {"provider": "p", "deployment": "d"}}
    yield from _beside_bundle(
        signed, tokenBudget={}, contentSafety={}, modelPreference=model, displayName="x"
    )
    for change, field, message in (
        (
            {"agtProfile": {"inline": testing.DENY_PROFILE, "bundleRef": OCI}},
            "spec.agtProfile.bundleRef",
            "not allowed beside inline; keep one of them",
        ),
        (
            {"rateLimit": {"burst": 5}},
            "spec.rateLimit.rps",
            "is required beside burst, and at least 1",
        ),
        (
            {"rateLimit": {"rps": 1, "burst": 0}},
            "spec.rateLimit.burst",
            "allowed: at least 1 (with 0 no call could ever pass)",
        ),
        (
            {"approval": {"mode": "aboveThreshold"}},
            "spec.approval.threshold",
            "is required when spec.approval.mode is aboveThreshold",
        ),
    ):
        yield BrokenRule(document=testing.tool_policy(**change), field=field, message=message)


def _memories() -> Iterator[BrokenRule]:
    given = {"sandboxRef": {"name": "a"}, "storeName": "notes", "scope": "team"}
    for name in ("storeName", "scope"):
        spec = {field: value for field, value in given.items() if field != name}
        yield BrokenRule(
            document=testing.document("KarsMemory", "m", spec),
            field=f"spec.{name}",
            message="is required unless spec.bundleRef is given",
        )
    signed = testing.document("KarsMemory", "m", {"sandboxRef": {"name": "a"}, "bundleRef": OCI})
    yield from _beside_bundle(
        signed, storeName="n", scope="s", retentionDays=1, deleteOnSandboxDelete=True, displayName="x"
    )


def _servers() -> Iterator[BrokenRule]:
    production = {"url": "https://m", "productionMode": True, "oauth": {"issuer": "https://i"}}
    for change, field, message in (
        ({"url": "http://m"}, ".url", "must be an https:// URL when spec.productionMode is true"),
        ({"url": None}, ".url", "must be an https:// URL when spec.productionMode is true"),
        ({"oauth": None}, ".oauth", "is required when spec.productionMode is true"),
        (
            {"oauth": {"issuer": ""}},
            ".oauth.issuer",
            "must not be empty when spec.productionMode is true",
        ),
    ):
        spec = {name: value for name, value in {**production, **change}.items() if value is not None}
        yield BrokenRule(
            document=testing.document("McpServer", "m", spec), field=f"spec{field}", message=message
        )
    signed = testing.document("McpServer", "m", {"bundleRef": OCI})
    yield from _beside_bundle(
        signed,
        url="https://m",
        oauth={"issuer": "i"},
        productionMode=False,
        scopes=[],
        allowedTools=[],
        displayName="x",
    )


def _agents() -> Iterator[BrokenRule]:
    key = {"kid": "k", "alg": "EdDSA", "publicKeyB64u": "A"}
    spec: dict[str, Any] = {"endpointUrl": "https://a", "signingKeys": [key]}
    inside = {"label": "x", "kind": "in-cluster", "agentRef": {"name": "x"}}
    outside = {"label": "x", "kind": "external", "endpointUrl": "https://x", "pinnedKid": "k"}
    for peer, name, owner in (
        ({"label": "x", "kind": "in-cluster"}, "agentRef", "in-cluster"),
        ({**outside, "agentRef": {"name": "x"}}, "agentRef", "in-cluster"),
        ({**inside, "endpointUrl": "https://x"}, "endpointUrl", "external"),
        ({"label": "x", "kind": "external", "pinnedKid": "k"}, "endpointUrl", "external"),
        ({**inside, "pinnedKid": "k"}, "pinnedKid", "external"),
        ({"label": "x", "kind": "external", "endpointUrl": "https://x"}, "pinnedKid", "external"),
    ):
        yield BrokenRule(
            document=testing.document("A2AAgent", "a", {**spec, "federation": [peer]}),
            field=f"spec.federation[0].{name}",
            message=f"is required for kind {owner}, and not allowed otherwise",
        )
    for change, field, message in (
        (
            {"productionMode": True, "endpointUrl": "http://a"},
            "spec.endpointUrl",
            "must be an https:// URL when spec.productionMode is true",
        ),
        ({"signingKeys": [key, key]}, "spec.signingKeys", "a kid names one key; it is given twice"),
    ):
        document = testing.document("A2AAgent", "a", {**spec, **change})
        yield BrokenRule(document=document, field=field, message=message)


def _others() -> Iterator[BrokenRule]:
    for corpus in ({}, {"builtin": "x", "bundleRef": OCI}):
        yield BrokenRule(
            document=testing.document("KarsEval", "e", {"targetSandboxRef": {"name": "a"}, "corpus": corpus}),
            field="spec.corpus",
            message="allowed: exactly one of builtin, bundleRef",
        )
    for ttl in ("PT0S", "P0D", "P", "PT", "P1DT"):
        yield BrokenRule(
            document=testing.document("EgressApproval", "e", {**APPROVAL, "ttl": ttl}),
            field="spec.ttl",
            message="allowed: a duration above zero, such as PT4H or P1DT12H",
        )
    vertex = {"id": "a", "alg": "EdDSA", "publicKeyB64u": "A"}
    edge = {"from": "a", "to": "a", "score": 1, "issuedAt": 6, "notAfter": 5, "signature": "s"}
    yield BrokenRule(
        document=cluster_wide("TrustGraph", "bad", {"vertices": [vertex], "edges": [edge]}),
        field="spec.edges[0].notAfter",
        message="allowed: at least issuedAt",
    )
    identity = {
        "tenant": {"tenantId": "t"},
        "agentId": {"blueprintClientId": "c", "blueprintObjectId": "o"},
        "controller": {"managedIdentityClientId": "m", "managedIdentityResourceId": "r"},
    }
    yield BrokenRule(
        document=cluster_wide("KarsAuthConfig", "default", {**identity, "meshAuthAudience": "api://x"}),
        field="spec.meshAuthAudience",
        message="not allowed unless spec.meshAuthBackend is EntraAgentIdentity",
    )


def _action(type_: str, **params: Any) -> dict[str, Any]:
    action = {"type": type_, "params": {"namespace": "shop", "name": "cart", **params}}
    return testing.document("KarsSREAction", "fix", {**PROPOSAL, "action": action})


def _actions() -> Iterator[BrokenRule]:
    for namespace in ("kube-system", "kars-system", "kars-agent", "agentmesh"):
        yield BrokenRule(
            document=_action("DeletePod", namespace=namespace),
            field="spec.action.params.namespace",
            message="namespaces of the cluster and of kars are not repaired by an agent",
        )
    for document, name, owner in (
        (_action("PatchDeploymentImage", image="i"), "container", "PatchDeploymentImage"),
        (_action("DeletePod", container="c"), "container", "PatchDeploymentImage"),
        (_action("PatchDeploymentImage", container="c"), "image", "PatchDeploymentImage"),
        (_action("DeletePod", image="i"), "image", "PatchDeploymentImage"),
        (_action("ScaleDeployment"), "replicas", "ScaleDeployment"),
        (_action("DeletePod", replicas=1), "replicas", "ScaleDeployment"),
    ):
        yield BrokenRule(
            document=document,
            field=f"spec.action.params.{name}",
            message=f"is required for {owner}, and not allowed otherwise",
        )
    yield BrokenRule(
        document=_action("DeletePod", kind="DaemonSet"),
        field="spec.action.params.kind",
        message="allowed for RolloutRestart only",
    )
    approved = testing.document("KarsSREAction", "self", {**PROPOSAL, "approval": {"state": "Approved"}})
    yield BrokenRule(
        document=approved,
        field="spec.approval.state",
        message="allowed on create: Pending; nobody approves their own proposal",
    )


def _changes() -> Iterator[BrokenRule]:
    grant = testing.document("EgressApproval", "grant", APPROVAL)
    for change in (
        {"ttl": "P7D"},
        {"hosts": [{"host": "evil.example"}]},
        {"sandbox": "other"},
        {"reason": "another"},
    ):
        yield BrokenRule(
            stored=(grant,),
            document=testing.document("EgressApproval", "grant", {**APPROVAL, **change}),
            field="spec",
            message="an approval cannot be changed; delete it and create another",
        )
    proposal = testing.document("KarsSREAction", "change", PROPOSAL)
    changes: dict[str, Any] = {
        "action": {"type": "DeletePod", "params": {"namespace": "shop", "name": "database-0"}},
        "ttlMinutes": 60,
        "diagnosis": "something else",
        "rationale": None,
    }
    for name, value in changes.items():
        spec = {**PROPOSAL, name: value}
        yield BrokenRule(
            stored=(proposal,),
            document=testing.document(
                "KarsSREAction", "change", {key: item for key, item in spec.items() if item is not None}
            ),
            field=f"spec.{name}",
            message="cannot be changed: what was read by the approver is what is done",
        )
    rejected = {**PROPOSAL, "approval": {"state": "Rejected"}}
    yield BrokenRule(
        stored=(proposal, testing.document("KarsSREAction", "change", rejected)),
        document=testing.document("KarsSREAction", "change", {**PROPOSAL, "approval": {"state": "Approved"}}),
        field="spec.approval",
        message="the decision is final; propose the action again",
    )
