"""Manifests that are valid, and that together give every field of every kind a value."""

import copy
from typing import Any

from kars_controller import testing

OCI = {
    "registry": "registry.example",
    "repository": "team/policy",
    "digest": "sha256:" + "0f" * 32,
    "artifactType": "application/vnd.example.policy",
}
_CODE: tuple[dict[str, Any], ...] = (
    {"oci": {"image": "registry.example/agent:1"}},
    {"git": {"url": "https://git.example/agent", "ref": "main", "path": "agent"}},
    {"local": {"path": "/home/ann/agent", "workspace": "/home/ann/workspace"}},
)
_LANGUAGES = {"microsoftAgentFramework": "python", "semanticKernel": "dotnet", "langGraph": "typescript"}
RUNTIMES: dict[str, str] = {
    "OpenAIAgents": "openaiAgents",
    "MicrosoftAgentFramework": "microsoftAgentFramework",
    "SemanticKernel": "semanticKernel",
    "LangGraph": "langGraph",
    "Anthropic": "anthropic",
    "PydanticAi": "pydanticAi",
    "Hermes": "hermes",
}
PROPOSAL: dict[str, Any] = {
    "action": {"type": "DeletePod", "params": {"namespace": "shop", "name": "cart-7d9f"}},
    "approval": {"state": "Pending", "note": "please look"},
    "ttlMinutes": 10,
    "diagnosis": "the pod hangs",
    "rationale": "its deployment makes another",
}
APPROVAL: dict[str, Any] = {
    "sandbox": "agent",
    "hosts": [{"host": "api.example.com", "port": 8443}, {"host": "files.example.com"}],
    "reason": "release 12\tneeds it",
    "ticket": "OPS-12",
    "ttl": "P1DT4H",
}


def cluster_wide(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return a document that is in no namespace."""
    found = testing.document(kind, name, copy.deepcopy(spec))
    del found["metadata"]["namespace"]
    return found


def _runtimes() -> list[dict[str, Any]]:
    found = []
    for index, (kind, variant) in enumerate(RUNTIMES.items()):
        adapter: dict[str, Any] = {"extraEnv": {"MODE": "quiet"}, "entrypoint": ["python", "-m", "agent"]}
        adapter["agentCode"] = _CODE[index % 3]
        if variant in _LANGUAGES:
            adapter["language"] = _LANGUAGES[variant]
        elif variant == "hermes":
            adapter["version"] = "1.2"
        else:
            adapter["pythonVersion"] = "3.12"
        found.append(testing.sandbox(kind.lower(), runtime={"kind": kind, variant: adapter}))
    openclaw = {
        "version": "1",
        "image": "i:1",
        "config": {"any": [1, {"deep": True}]},
        "extraEnv": {"A": "b"},
    }
    found.append(testing.sandbox("openclaw", runtime={"kind": "OpenClaw", "openclaw": openclaw}))
    env = [
        {"name": "A", "value": "b"},
        {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    byo = {"image": "i:1", "contractVersion": "v1", "command": ["run"], "args": ["-v"], "env": env}
    for index, code in enumerate(_CODE):
        runtime = {"kind": "BYO", "byo": {**byo, "agentCode": code}}
        found.append(testing.sandbox(f"byo-{index}", runtime=runtime))
    return found


def _every_code() -> list[dict[str, Any]]:
    return [
        testing.sandbox(f"{variant.lower()}-{index}", runtime={"kind": kind, variant: {"agentCode": code}})
        for kind, variant in RUNTIMES.items()
        for index, code in enumerate(_CODE)
    ]


def _full_sandbox() -> dict[str, Any]:
    return testing.sandbox(
        "full",
        sandbox={
            "isolation": "standard",
            "seccompProfile": "RuntimeDefault",
            "selinuxContext": "container_t",
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "writablePaths": ["/sandbox", "/tmp"],
        },
        memoryRef={"name": "notes"},
        agent={"instructions": "be kind", "tools": ["search"], "fileIds": ["f1"]},
        governance={
            "enabled": True,
            "toolPolicyRef": {"name": "tools"},
            "trustThreshold": 700,
            "trustedPeers": "planner, team/writer, spiffe://kars.local/ns/default/sandbox/reader, old:Abc123",
            "registryMode": "global",
            "mcpServerRefs": [{"name": "files"}, {"name": "search"}],
        },
        azureServices=[{"service": "storage", "account": "acme", "permissions": ["read"]}],
        networkPolicy={
            "defaultDeny": True,
            "egressMode": "Strict",
            "allowedEndpoints": [{"host": "api.example.com", "port": 443, "name": "api"}],
            "allowlistRef": OCI,
            "learnEgress": False,
            "approvalRequired": True,
        },
        resources={"requests": {"cpu": 0.5, "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "4Gi"}},
        suspended=True,
        a2a={"enabled": True, "agentRef": {"name": "agent"}},
        upstreamCompatibility={"sigsAgentSandbox": "off"},
        meshAuth={"mode": "agent-id", "customSecurityAttributes": {"team": "blue"}},
    )


def _policies() -> list[dict[str, Any]]:
    safety = {
        "hate": "Low",
        "selfHarm": "Low",
        "sexual": "Medium",
        "violence": "Safe",
        "requirePromptShields": True,
    }
    model = {"provider": "openai", "deployment": "gpt"}
    return [
        testing.inference_policy(
            "inline",
            appliesTo={"sandboxName": "agent", "sandboxMatchLabels": {"a": "b"}, "action": "chat"},
            tokenBudget={"perRequestTokens": 100, "dailyTokens": 1000, "monthlyTokens": 10_000},
            contentSafety=safety,
            modelPreference={"primary": model, "fallback": [model]},
            displayName="Models",
        ),
        testing.document("InferencePolicy", "signed", {"appliesTo": {}, "bundleRef": OCI}),
        testing.tool_policy(
            "inline",
            appliesTo={"sandboxMatchLabels": {"a": "b"}, "tool": "http", "mcpServer": "files"},
            commerce={
                "dailyCap": "10",
                "monthlyCap": "100",
                "perTransferCap": "1",
                "counterpartyAllowlist": ["shop"],
            },
            rateLimit={"rps": 5, "burst": 10, "window": "60s"},
            approval={"mode": "aboveThreshold", "threshold": "10", "channel": "ops"},
            displayName="Tools",
        ),
        testing.tool_policy("signed", agtProfile={"bundleRef": OCI}),
    ]


def _planned_kinds() -> list[dict[str, Any]]:
    key = {"kid": "k1", "alg": "EdDSA", "publicKeyB64u": "A" * 43, "notAfter": 2_000_000_000}
    peers = [
        {"label": "writer", "kind": "in-cluster", "agentRef": {"name": "writer"}},
        {"label": "shop", "kind": "external", "endpointUrl": "https://shop.example", "pinnedKid": "s1"},
    ]
    params = {"namespace": "shop", "name": "cart"}
    actions: list[dict[str, Any]] = [
        {"type": "DeleteResourceQuota", "params": params},
        {"type": "PatchDeploymentImage", "params": {**params, "container": "web", "image": "cart:2"}},
        {"type": "ScaleDeployment", "params": {**params, "replicas": 0}},
        {"type": "RolloutRestart", "params": {**params, "kind": "StatefulSet"}},
    ]
    return [
        testing.document(
            "KarsMemory",
            "inline",
            {
                "sandboxRef": {"name": "agent"},
                "storeName": "notes",
                "scope": "team/agent@1",
                "retentionDays": 30,
                "deleteOnSandboxDelete": False,
                "displayName": "Notes",
            },
        ),
        testing.document("KarsMemory", "signed", {"sandboxRef": {"name": "agent"}, "bundleRef": OCI}),
        testing.document(
            "McpServer",
            "production",
            {
                "url": "https://mcp.example",
                "productionMode": True,
                "oauth": {
                    "issuer": "https://login.example",
                    "audience": "mcp",
                    "resource": "https://mcp.example",
                    "pkce": "S256",
                },
                "scopes": ["read"],
                "allowedTools": ["list"],
                "bearerFromEnv": "FILES_TOKEN",
                "allowedSandboxes": {"matchLabels": {"team": "blue"}},
                "displayName": "Files",
            },
        ),
        testing.document("McpServer", "signed", {"bundleRef": OCI, "bearerFromEnv": "FILES_TOKEN"}),
        testing.document("McpServer", "minimal", {}),
        testing.document(
            "A2AAgent",
            "agent",
            {
                "endpointUrl": "https://agent.example",
                "productionMode": True,
                "displayName": "Agent",
                "description": "answers",
                "capabilities": ["chat"],
                "signingKeys": [key],
                "federation": peers,
                "policyRefs": {"toolPolicy": "tools"},
                "trust": {
                    "requireSignedRequests": True,
                    "minSignaturesRequired": 1,
                    "maxClockSkewSeconds": 60,
                },
            },
        ),
        testing.document(
            "KarsEval",
            "nightly",
            {
                "targetSandboxRef": {"name": "agent"},
                "corpus": {"builtin": "jailbreak-baseline"},
                "schedule": "*/15 * * * *",
                "displayName": "Nightly",
                "runnerImage": "runner:1",
                "failSandboxOnDrift": True,
            },
        ),
        testing.document(
            "KarsEval", "signed", {"targetSandboxRef": {"name": "agent"}, "corpus": {"bundleRef": OCI}}
        ),
        testing.document("EgressApproval", "release", APPROVAL),
        testing.document("KarsSREAction", "delete-pod", PROPOSAL),
        *(
            testing.document("KarsSREAction", action["type"].lower(), {**PROPOSAL, "action": action})
            for action in actions
        ),
    ]


def _mesh_kinds() -> list[dict[str, Any]]:
    a, b = (
        {"id": name, "alg": "EdDSA", "publicKeyB64u": "A" * 43, "label": name}
        for name in ("planner", "writer")
    )
    edge = {
        "from": "planner",
        "to": "writer",
        "score": 800,
        "issuedAt": 1,
        "notAfter": 2,
        "signature": "c2ln",
    }
    return [
        cluster_wide("TrustGraph", "team", {"vertices": [a, b], "edges": [{**edge, "reason": "colleagues"}]}),
        cluster_wide(
            "KarsAuthConfig",
            "default",
            {
                "tenant": {
                    "tenantId": "t",
                    "authorityHost": "https://login.example/",
                    "serviceManagementReference": "r",
                },
                "agentId": {
                    "blueprintClientId": "c",
                    "blueprintObjectId": "o",
                    "sponsorUserObjectIds": ["u"],
                },
                "controller": {
                    "managedIdentityClientId": "m",
                    "managedIdentityResourceId": "r",
                    "managedIdentityPrincipalId": "p",
                    "credentialMode": "WorkloadIdentity",
                },
                "meshAuthBackend": "EntraAgentIdentity",
                "meshAuthAudience": "api://mesh",
                "downstreamApis": {
                    "Graph": {"baseUrl": "https://g", "requestAppToken": True, "scopes": ["s"]}
                },
                "foundryRbac": [{"scope": "/subscriptions/1", "roleDefinitionIds": ["reader"]}],
            },
        ),
        testing.document(
            "KarsPairing",
            "laptop",
            {
                "tokenHash": "0f" * 32,
                "expiresAt": "2027-01-31T12:00:00Z",
                "slotsMax": 2,
                "tokenBudget": 1000,
                "capabilities": ["offload"],
                "displayName": "Laptop",
                "model": "gpt",
                "isolation": "confidential",
            },
        ),
    ]


def full() -> list[dict[str, Any]]:
    """Return manifests that give every field a value."""
    one_server = testing.sandbox("one-server", governance={"mcpServerRef": {"name": "files"}})
    listed = [
        _full_sandbox(),
        one_server,
        *_runtimes(),
        *_every_code(),
        *_policies(),
        *_planned_kinds(),
        *_mesh_kinds(),
    ]
    # Samples share parts, and tests change them.
    return copy.deepcopy(listed)


def short() -> list[dict[str, Any]]:
    """Return manifests that leave out what may be left out, also what only some writers leave out."""
    sandbox = testing.sandbox("short")
    del sandbox["spec"]["governance"], sandbox["spec"]["sandbox"]
    byo = testing.sandbox("short-byo", runtime={"kind": "BYO", "byo": {"image": "i:1"}})
    endpoints = {"allowedEndpoints": [{"host": "api.example.com"}]}
    return [
        sandbox,
        byo,
        testing.sandbox("short-governance", governance={}),
        testing.sandbox("short-network", networkPolicy={}),
        testing.sandbox("short-endpoint", networkPolicy=endpoints),
        testing.sandbox("short-auth", meshAuth={}),
        testing.inference_policy("short", tokenBudget={}, contentSafety={}),
        testing.tool_policy("short", appliesTo={"sandboxMatchLabels": {}}, agtProfile={}),
        testing.document("McpServer", "dev", {"url": "http://mcp:8080", "oauth": {"issuer": ""}}),
        testing.document(
            "A2AAgent",
            "short",
            {
                "endpointUrl": "http://a",
                "signingKeys": [{"kid": "k", "alg": "EdDSA", "publicKeyB64u": "A"}],
                "trust": {},
            },
        ),
        testing.document(
            "EgressApproval",
            "short",
            {"sandbox": "a", "hosts": [{"host": "h"}], "reason": "because", "ttl": "PT30M"},
        ),
        testing.document(
            "KarsSREAction",
            "short",
            {
                "action": {
                    "type": "RolloutRestart",
                    "params": {"namespace": "shop", "name": "cart"},
                },
                "approval": {"state": "Pending"},
            },
        ),
        cluster_wide(
            "TrustGraph", "short", {"vertices": [{"id": "a", "alg": "EdDSA", "publicKeyB64u": "A"}]}
        ),
        testing.document(
            "KarsPairing", "short", {"tokenHash": "0f" * 32, "expiresAt": "2027-01-31T12:00:00+01:00"}
        ),
    ]
