"""The reconcile table of KarsSandbox: what is observed decides phase, conditions, bundle and pod."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.policy.v1 import policy_pb2
from kars_common import policy as policies
from kars_common.errors import FailedPreconditionError, KarsError
from kars_controller import api_types, testing
from kars_controller.compile import bundle as bundles
from kars_controller.distribution import Acknowledgement, Published, Refused
from kars_controller.platforms.base import (
    ContainerState,
    ContainerStatus,
    ControlState,
    Enforcement,
    IsolationControl,
    PodPhase,
    PodStatus,
    SeccompProfile,
)
from kars_controller.providers import Providers
from kars_controller.reconcile import conditions, sandbox
from kars_controller.reconcile.plan import Plan, RouterMaterial, SandboxObserved
from kars_controller.runtimes import InstalledRuntime, RuntimeCatalog

SIGNER = Ed25519PrivateKey.generate()
ROUTER = RouterMaterial(
    trust_domain="kars.local",
    controller_endpoint="127.0.0.1:1",
    bootstrap_endpoint="127.0.0.1:2",
    trust_bundle_pem=b"root",
    policy_keys=b"[]",
    witness_key=b"w",
)
PROVIDERS = Providers(
    entries={
        "openai": {"name": "openai", "baseUrl": "http://x/v1", "auth": {"keyFile": "k"}},
        "other": {"name": "other", "baseUrl": "http://y/v1", "auth": {"keyFile": "o"}},
    },
    secrets={"k": b"canary-key", "o": b"other-key"},
)
RUNTIMES = RuntimeCatalog(
    installed={"PydanticAi": InstalledRuntime(argv=("/v/bin/python", "-m", "adapter"), bin_dir="/v/bin")}
)


def stored(document: dict[str, Any]) -> dict[str, Any]:
    found = api_types.admit(document).document
    found["metadata"] |= {"uid": "u", "generation": 1, "resourceVersion": "1"}
    return found


def observe(**changes: Any) -> SandboxObserved:
    base = SandboxObserved(
        now=testing.Clock()(),
        inference_policy=stored(testing.inference_policy()),
        tool_policy=stored(testing.tool_policy()),
        missing={"InferencePolicy": "no models", "ToolPolicy": "no tools"},
        providers=PROVIDERS,
        runtimes=RUNTIMES,
        router=ROUTER,
        code_dir=Path("/code"),
    )
    return replace(base, **changes)


def published(bundle: policy_pb2.PolicyBundle, version: int = 1) -> Published:
    content = policy_pb2.PolicyBundle()
    content.CopyFrom(bundle)
    content.version = version
    signed = policies.sign(policies.canonical_payload(content), SIGNER)
    return Published(version=version, content_digest=bundles.content_digest(bundle), signed=signed)


def converged(document: dict[str, Any], **changes: Any) -> tuple[Plan, SandboxObserved]:
    """Return the plan of a sandbox that runs and whose router acknowledged."""
    observed = observe(**changes)
    first = sandbox.reconcile(document, observed)
    assert first.bundle is not None
    assert first.pod is not None
    issued = published(first.bundle)
    observed = replace(
        observed,
        published=issued,
        answer=Acknowledgement(connected=True, version=1, digest=issued.digest),
        pod=testing.running_pod(first.pod),
    )
    return sandbox.reconcile(document, observed), observed


def condition(plan: Plan, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in plan.status["conditions"] if item["type"] == name)
    return found


def verdict(plan: Plan) -> tuple[str, str, str]:
    ready = condition(plan, "Ready")
    return plan.status["phase"], ready["status"], ready["reason"]


def test_ready_when_the_pod_runs_and_the_router_enforces_exactly_this_policy() -> None:
    plan, observed = converged(stored(testing.sandbox()))
    assert verdict(plan) == ("Running", "True", "Reconciled")
    assert observed.published is not None
    assert plan.status["policy"]["loadedDigest"] == observed.published.digest
    assert condition(plan, "Ready")["observedGeneration"] == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Acknowledgement(), ("Creating", "False", "AwaitingRouterEnforcement")),
        (
            Acknowledgement(connected=True, version=1, digest="sha256:old"),
            ("Creating", "False", "AwaitingRouterEnforcement"),
        ),
    ],
)
def test_not_ready_before_the_router_acknowledged(answer: Acknowledgement, expected: tuple[str, ...]) -> None:
    document = stored(testing.sandbox())
    _, observed = converged(document)
    assert verdict(sandbox.reconcile(document, replace(observed, answer=answer))) == expected


def test_not_ready_when_the_router_that_acknowledged_went_away() -> None:
    document = stored(testing.sandbox())
    _, observed = converged(document)
    away = replace(observed, answer=replace(observed.answer, connected=False))
    assert verdict(sandbox.reconcile(document, away))[1] == "False"


def test_a_refused_bundle_is_said_with_its_reason() -> None:
    document = stored(testing.sandbox())
    _, observed = converged(document)
    assert observed.published is not None
    nack = Refused(version=1, digest=observed.published.digest, reason="compile_failed", message="bad rule")
    refused = replace(observed, answer=replace(observed.answer, digest="sha256:old", refused=nack))
    plan = sandbox.reconcile(document, refused)
    assert verdict(plan) == ("Degraded", "False", "PolicyRefused")
    assert "compile_failed" in condition(plan, "Ready")["message"]


def test_a_changed_policy_is_not_ready_before_it_is_published() -> None:
    document = stored(testing.sandbox())
    _, observed = converged(document)
    changed = replace(
        observed, inference_policy=stored(testing.inference_policy(tokenBudget={"dailyTokens": 1}))
    )
    assert verdict(sandbox.reconcile(document, changed)) == ("Creating", "False", "PolicyNotPublished")


@pytest.mark.parametrize(
    ("document", "observed", "reason"),
    [
        (testing.sandbox(), {"inference_policy": None}, "InferencePolicyNotFound"),
        (testing.sandbox(), {"tool_policy": None}, "ToolPolicyNotFound"),
        (testing.sandbox(), {"providers": Providers(problem="cannot read")}, "DependencyMissing"),
        (testing.sandbox(), {"runtimes": RuntimeCatalog()}, "RuntimeNotInstalled"),
        (testing.sandbox(runtime={"kind": "SemanticKernel", "semanticKernel": {}}), {}, "AdapterMissing"),
        (testing.sandbox(runtime={"kind": "Hermes", "hermes": {}}), {}, "RuntimeNotInstalled"),
        (
            testing.sandbox(runtime={"kind": "BYO", "byo": {"image": "a:b", "contractVersion": "v1"}}),
            {},
            "BYOContractInvalid",
        ),
        (
            testing.sandbox(
                runtime={
                    "kind": "BYO",
                    "byo": {"image": "untagged", "contractVersion": "v1", "command": ["/bin/x"]},
                }
            ),
            {"byo_strict": True},
            "BYOContractInvalid",
        ),
        (testing.sandbox(sandbox={"isolation": "confidential"}), {}, "IsolationUnavailable"),
        (
            testing.sandbox(
                runtime={"kind": "PydanticAi", "pydanticAi": {"agentCode": {"oci": {"image": "i:1"}}}}
            ),
            {},
            "AgentCodeUnsupported",
        ),
        (
            testing.sandbox(),
            {"apply_error": FailedPreconditionError("isolation_unavailable", "no landlock")},
            "IsolationUnavailable",
        ),
        (
            testing.sandbox(),
            {"inference_policy": stored(testing.document("InferencePolicy", "models", {"appliesTo": {}}))},
            "SpecInvalid",
        ),
        (testing.sandbox(), {"tool_policy": stored(testing.tool_policy(agtProfile=None))}, "SpecInvalid"),
    ],
)
def test_what_cannot_run_here_is_degraded_with_a_reason(
    document: dict[str, Any], observed: dict[str, Any], reason: str
) -> None:
    plan = sandbox.reconcile(stored(document), observe(**observed))
    assert verdict(plan) == ("Degraded", "False", reason)
    assert condition(plan, "Degraded")["status"] == "True"
    assert condition(plan, "Ready")["message"]
    if reason != "IsolationUnavailable" or "apply_error" not in observed:
        assert plan.pod is None


def test_a_policy_taken_away_denies_everything_and_leaves_the_pod() -> None:
    document = stored(testing.sandbox())
    _, observed = converged(document)
    plan = sandbox.reconcile(document, replace(observed, inference_policy=None))
    assert verdict(plan) == ("Degraded", "False", "InferencePolicyNotFound")
    assert plan.pod is None
    assert plan.bundle is not None
    assert not plan.bundle.inference.models
    assert plan.bundle.governance.default_verdict == policy_pb2.VERDICT_DENY


def test_a_stored_spec_that_no_longer_parses_degrades_only_itself() -> None:
    document = stored(testing.sandbox())
    document["spec"]["fromTheFuture"] = 1
    assert verdict(sandbox.reconcile(document, observe())) == ("Degraded", "False", "SpecInvalid")


@pytest.mark.parametrize(
    ("governance", "tool_policy", "default"),
    [
        ({"enabled": False}, None, policy_pb2.VERDICT_ALLOW),
        ({}, None, policy_pb2.VERDICT_ALLOW),
        (None, stored(testing.tool_policy("kars-default")), policy_pb2.VERDICT_DENY),
    ],
)
def test_governance_absent_and_disabled(
    governance: dict[str, Any] | None, tool_policy: dict[str, Any] | None, default: int
) -> None:
    document = stored(testing.sandbox(governance=governance))
    plan = sandbox.reconcile(document, observe(tool_policy=tool_policy))
    assert plan.bundle is not None
    assert plan.bundle.governance.default_verdict == default
    assert plan.bundle.governance.trust_threshold == 500


def test_the_agent_gets_no_credential_and_the_router_only_its_own() -> None:
    plan = sandbox.reconcile(stored(testing.sandbox()), observe())
    assert plan.pod is not None
    assert "canary-key" not in repr(plan.pod.agent)
    assert "canary-key" not in repr(plan.pod)
    files = {file.path: file for file in plan.pod.router.files}
    assert files["secrets/0.key"].content == b"canary-key"
    assert files["secrets/0.key"].mode == 0o600
    assert not any(b"other" in file.content for file in files.values())


def test_an_unknown_provider_means_the_default_one_if_there_is_one() -> None:
    policy = stored(
        testing.inference_policy(modelPreference={"primary": {"provider": "azure-openai", "deployment": "m"}})
    )
    assert verdict(sandbox.reconcile(stored(testing.sandbox()), observe(inference_policy=policy)))[2] == (
        "DependencyMissing"
    )
    with_default = observe(inference_policy=policy, providers=replace(PROVIDERS, default="openai"))
    plan = sandbox.reconcile(stored(testing.sandbox()), with_default)
    assert plan.pod is not None
    content = next(file.content for file in plan.pod.router.files if file.path == "providers.json")
    assert b'"name": "azure-openai"' in content


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ({"GOOD": "1"}, True),
        ({"KARS_MODEL": "x"}, False),
        ({"AGT_POLICY_DIR": "x"}, False),
        ({"AZURE_KEY": "x"}, False),
        ({"IMDS_X": "x"}, False),
        ({"FOUNDRY_AGENT_ID": "x"}, False),
        ({"1BAD": "x"}, False),
        ({"BA D": "x"}, False),
        ({"NUL": "a\0b"}, False),
        ({"OPENAI_BASE_URL": "http://evil"}, False),
        ({"PATH": "/evil"}, False),
    ],
)
def test_extra_environment_is_filtered_and_said(extra: dict[str, str], *, kept: bool) -> None:
    document = stored(testing.sandbox(runtime={"kind": "PydanticAi", "pydanticAi": {"extraEnv": extra}}))
    plan = sandbox.reconcile(document, observe())
    assert plan.pod is not None
    ((name, value),) = extra.items()
    assert (plan.pod.agent.env.get(name) == value) is kept
    assert (condition(plan, "SpecEnforced")["status"] == "True") is kept


def test_an_entrypoint_replaces_the_adapter_and_finds_its_interpreter() -> None:
    document = stored(
        testing.sandbox(
            runtime={"kind": "PydanticAi", "pydanticAi": {"entrypoint": ["python", "/sandbox/agent/main.py"]}}
        )
    )
    plan = sandbox.reconcile(document, observe())
    assert plan.pod is not None
    assert plan.pod.agent.argv == ("/v/bin/python", "/sandbox/agent/main.py")


def test_limits_and_isolation_reach_the_pod() -> None:
    limits = {"limits": {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi", "gpu": 1}}
    plan = sandbox.reconcile(stored(testing.sandbox(resources=limits)), observe())
    assert plan.pod is not None
    found = plan.pod.agent.limits
    assert (found.cpu_millis, found.memory_bytes, found.workspace_bytes) == (500, 512 << 20, 1 << 30)
    assert plan.pod.agent.isolation.seccomp is SeccompProfile.KARS_STRICT
    assert plan.pod.agent.isolation.landlock is Enforcement.BEST_EFFORT  # ADR 0007: announced, not demanded
    assert "gpu" in condition(plan, "SpecEnforced")["message"]
    standard = sandbox.reconcile(stored(testing.sandbox(sandbox={"isolation": "standard"})), observe())
    assert standard.pod is not None
    assert standard.pod.agent.isolation.seccomp is SeccompProfile.RUNTIME_DEFAULT
    assert standard.pod.agent.isolation.landlock is Enforcement.BEST_EFFORT


def test_the_digest_changes_with_what_restarts_and_not_with_the_token() -> None:
    from kars_controller.reconcile import pod

    plan = sandbox.reconcile(stored(testing.sandbox()), observe()).pod
    again = sandbox.reconcile(stored(testing.sandbox()), observe()).pod
    other = sandbox.reconcile(stored(testing.sandbox(resources={"limits": {"cpu": 1}})), observe()).pod
    assert plan is not None
    assert again is not None
    assert other is not None
    assert plan.digest == again.digest == pod.with_join_token(plan, "secret").digest
    assert plan.digest != other.digest


def test_suspended_stops_the_pod_and_resuming_says_active() -> None:
    document = stored(testing.sandbox(suspended=True))
    plan, _ = converged(document)
    assert verdict(plan) == ("Suspended", "False", "SuspendedBySpec")
    assert (condition(plan, "Suspended")["status"], condition(plan, "Suspended")["reason"]) == (
        "True",
        "SuspendedBySpec",
    )
    assert plan.pod is not None
    assert plan.pod.suspended
    resumed = stored(testing.sandbox())
    resumed["status"] = dict(plan.status)
    after, _ = converged(resumed)
    assert (condition(after, "Suspended")["status"], condition(after, "Suspended")["reason"]) == (
        "False",
        "Active",
    )


def pod_with(observed: SandboxObserved, **changes: Any) -> PodStatus:
    assert observed.pod is not None
    return replace(observed.pod, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"router": ContainerStatus(name="router", state=ContainerState.WAITING)},
            ("Creating", "False", "RouterNotReady"),
        ),
        (
            {"agent": ContainerStatus(name="agent", state=ContainerState.WAITING, reason="CrashLoopBackOff")},
            ("Degraded", "False", "CrashLoopBackOff"),
        ),
        (
            {"agent": ContainerStatus(name="agent", state=ContainerState.TERMINATED, reason="OOMKilled")},
            ("Degraded", "False", "OOMKilled"),
        ),
        (
            {
                "phase": PodPhase.FAILED,
                "agent": ContainerStatus(
                    name="agent", state=ContainerState.WAITING, reason="IsolationFailed"
                ),
            },
            ("Failed", "False", "IsolationFailed"),
        ),
        ({"phase": PodPhase.SUCCEEDED}, ("Succeeded", "False", "Completed")),
        ({"plan_digest": "sha256:older"}, ("Creating", "False", "PodCreating")),
    ],
)
def test_how_the_pod_is_decides(changes: dict[str, Any], expected: tuple[str, str, str]) -> None:
    document = stored(testing.sandbox())
    _, observed = converged(document)
    plan = sandbox.reconcile(document, replace(observed, pod=pod_with(observed, **changes)))
    assert verdict(plan) == expected


def test_missing_isolation_is_announced() -> None:
    document = stored(testing.sandbox())
    _, observed = converged(document)
    control = IsolationControl(name="landlock", state=ControlState.ABSENT, detail="no ABI")
    plan = sandbox.reconcile(document, replace(observed, pod=pod_with(observed, isolation=(control,))))
    found = condition(plan, "IsolationEnforced")
    assert (found["status"], found["reason"]) == ("False", "IsolationDegraded")
    assert "landlock" in found["message"]


def test_an_inline_allowlist_is_not_authoritative() -> None:
    plan, _ = converged(stored(testing.sandbox(networkPolicy={"allowedEndpoints": ["a.example"]})))
    assert condition(plan, "AllowlistVerified")["reason"] == "Unsigned"
    assert condition(plan, "AllowlistAuthoritative")["reason"] == "Inline"
    assert condition(plan, "SpecEnforced")["status"] == "False"


def test_the_time_of_a_condition_moves_only_with_its_status() -> None:
    document = stored(testing.sandbox())
    plan, observed = converged(document)
    clock = testing.Clock()
    clock.advance(60)
    document["status"] = dict(plan.status)
    later = sandbox.reconcile(document, replace(observed, now=clock()))
    assert later.status == plan.status
    assert later.events == ()
    broken = sandbox.reconcile(document, replace(observed, now=clock(), answer=Acknowledgement()))
    assert condition(broken, "Ready")["lastTransitionTime"] > condition(plan, "Ready")["lastTransitionTime"]
    assert (
        condition(broken, "RuntimeReady")["lastTransitionTime"]
        == condition(plan, "RuntimeReady")["lastTransitionTime"]
    )
    assert [event.reason for event in broken.events] == ["AwaitingRouterEnforcement"]


def test_every_error_has_a_camel_case_reason() -> None:
    error: KarsError = FailedPreconditionError("some_new_reason", "x")
    assert sandbox.reason_of(error) == "SomeNewReason"
    assert conditions.READY == "Ready"
