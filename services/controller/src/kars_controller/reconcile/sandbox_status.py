"""How a sandbox is, in conditions: pod, router, policy in force, isolation, and fields without effect.

Ready is True only while the agent runs, its router is ready, and the router has acknowledged exactly the
bundle that was compiled from the resources as they are now.
"""

from collections.abc import Callable, Iterator
from typing import Any

from kars.policy.v1 import policy_pb2
from kars_common.errors import KarsError

from kars_controller.api_types.sandbox import KARS_SANDBOX, SandboxSpec
from kars_controller.compile import bundle as bundles
from kars_controller.platforms.base import DOOR_PORT, ContainerState, PodPhase, PodPlan, PodStatus
from kars_controller.reconcile import byo, conditions, env, pod
from kars_controller.reconcile.conditions import Condition
from kars_controller.reconcile.plan import SandboxObserved
from kars_controller.resources import Document, generation

_RUNTIME_REASONS = ("runtime_not_installed", "adapter_missing")
Verdict = tuple[str, tuple[Condition, ...]]


def judge(observed: SandboxObserved, bundle: policy_pb2.PolicyBundle | None, plan: PodPlan | None) -> Verdict:
    """Return phase and core conditions of a sandbox whose bundle and pod could be planned."""
    status = observed.pod
    if plan is not None and plan.suspended:
        return _judge_suspended(status)
    if status is None or plan is None or status.plan_digest != plan.digest:
        return "Creating", conditions.progressing("PodCreating", "the pod is being brought up")
    if status.phase is PodPhase.FAILED:
        return "Failed", conditions.degraded(status.agent.reason or "PodFailed", _pod_message(status))
    if status.phase is PodPhase.SUCCEEDED:
        return "Succeeded", _completed()
    return _judge_running(status, observed, bundle)


def _judge_running(
    status: PodStatus, observed: SandboxObserved, bundle: policy_pb2.PolicyBundle | None
) -> Verdict:
    if not status.router.ready:
        return _judge_waiting("Router", status, status.router.reason)
    enforced = policy_condition(observed, bundle)
    if not enforced.status:
        if observed.answer.refused is not None:
            return "Degraded", conditions.degraded(enforced.reason, enforced.message)
        return "Creating", conditions.progressing(enforced.reason, enforced.message)
    if status.agent.state is not ContainerState.RUNNING:
        return _judge_waiting("Agent", status, status.agent.reason)
    return "Running", conditions.ready("Reconciled", "the agent runs and its router enforces this policy")


def policy_condition(observed: SandboxObserved, bundle: policy_pb2.PolicyBundle | None) -> Condition:
    """Return whether the router enforces the bundle that the resources mean now."""
    published, answer = observed.published, observed.answer
    if bundle is None or published is None or published.content_digest != bundles.content_digest(bundle):
        return Condition.false("PolicyEnforced", "PolicyNotPublished", "no bundle of it was signed yet")
    if answer.refused is not None and answer.refused.digest == published.digest:
        refused = answer.refused
        message = f"the router refused version {refused.version}: {refused.reason}: {refused.message}"
        return Condition.false("PolicyEnforced", "PolicyRefused", message)
    if not answer.connected or answer.digest != published.digest:
        message = f"waiting for the router to acknowledge version {published.version}"
        return Condition.false("PolicyEnforced", "AwaitingRouterEnforcement", message)
    message = f"version {published.version} is in force ({published.digest})"
    return Condition.true("PolicyEnforced", "RouterEnforcing", message)


def runtime_condition(
    problem: KarsError | None, reason_of: Callable[[KarsError], str]
) -> Iterator[Condition]:
    """Yield whether there is an adapter for the runtime's kind."""
    if problem is not None and problem.reason in _RUNTIME_REASONS:
        yield Condition.false("RuntimeReady", reason_of(problem), problem.message)
    else:
        yield Condition.true("RuntimeReady", "Reconciled")


def details(
    sandbox: Document,
    spec: SandboxSpec | None,
    observed: SandboxObserved,
    bundle: policy_pb2.PolicyBundle | None,
) -> Iterator[Condition]:
    """Yield the conditions that explain, beside the core ones."""
    yield policy_condition(observed, bundle)
    if spec is None:
        return
    if spec.suspended:
        yield Condition.true("Suspended", "SuspendedBySpec", "spec.suspended is true")
    elif conditions.find(sandbox, "Suspended") is not None:
        yield Condition.false("Suspended", "Active")
    if observed.pod is not None and observed.pod.isolation:
        yield _isolation_condition(observed.pod)
    yield from _allowlist_conditions(spec)
    yield from _mesh_condition(spec, observed)
    without_effect = list(fields_without_effect(sandbox, spec))
    if without_effect:
        yield Condition.false("SpecEnforced", "NotEnforcedHere", "; ".join(without_effect))
    else:
        yield Condition.true("SpecEnforced", "Reconciled")


def fields_without_effect(sandbox: Document, spec: SandboxSpec) -> Iterator[str]:
    """Yield what the spec asks for and this platform does not give."""
    yield from KARS_SANDBOX.remarks(spec)
    name = sandbox["metadata"]["name"]
    _, refused = env.agent_env(name, spec.runtime, "", "")
    if refused:
        yield f"environment: {', '.join(refused[:10])} is reserved, malformed or not a literal; not passed on"
    limits = pod.unused_limits(spec)
    if limits:
        yield f"spec.resources.limits: {', '.join(limits)} is not known; it has no effect"
    if spec.runtime.byo is not None:
        yield "spec.runtime.byo.image: this platform pulls no images"
        problem = byo.image_problem(spec.runtime.byo.image)
        if problem is not None:
            yield f"spec.runtime.byo.image: {problem}"


def status(
    sandbox: Document,
    spec: SandboxSpec | None,
    observed: SandboxObserved,
    phase: str,
    all_conditions: tuple[Condition, ...],
) -> dict[str, Any]:
    """Return the status document."""
    name = sandbox["metadata"]["name"]
    document: dict[str, Any] = {
        "phase": phase,
        "observedGeneration": generation(sandbox),
        "conditions": conditions.stamped(sandbox, all_conditions, observed.now),
        "namespace": f"kars-{name}",
        "inferenceEndpoint": f"http://127.0.0.1:{DOOR_PORT}/v1",
    }
    if spec is not None:
        document["runtimeKind"] = spec.runtime.kind
    if observed.pod is not None:
        document["sandboxPod"] = name
        document["restartCount"] = observed.pod.agent.restart_count
    if observed.published is not None:
        document["policy"] = {
            "version": observed.published.version,
            "compiledDigest": observed.published.digest,
            "loadedDigest": observed.answer.digest,
            "loadedVersion": observed.answer.version,
        }
    return document


def _judge_suspended(status: PodStatus | None) -> Verdict:
    if status is not None and status.phase is not PodPhase.SUSPENDED:
        return "Creating", conditions.progressing("Suspending", "the pod is being stopped")
    return "Suspended", (
        Condition.false(conditions.READY, "SuspendedBySpec", "spec.suspended is true"),
        Condition.false(conditions.PROGRESSING, "SuspendedBySpec"),
        Condition.false(conditions.DEGRADED, "SuspendedBySpec"),
    )


def _judge_waiting(what: str, status: PodStatus, reason: str) -> Verdict:
    message = _pod_message(status)
    if reason in ("CrashLoopBackOff", "OOMKilled", "Error", "WorkspaceFull", "IsolationFailed"):
        return "Degraded", conditions.degraded(reason, message)
    return "Creating", conditions.progressing(
        f"{what}NotReady", message or f"the {what.lower()} is not ready yet"
    )


def _completed() -> tuple[Condition, ...]:
    return (
        Condition.false(conditions.READY, "Completed", "the agent ended by itself, with exit code 0"),
        Condition.false(conditions.PROGRESSING, "Completed"),
        Condition.false(conditions.DEGRADED, "Completed"),
    )


def _pod_message(status: PodStatus) -> str:
    parts = [
        f"{container.name}: {container.reason or container.state.value}"
        + (f" ({container.message})" if container.message else "")
        + (f", restarted {container.restart_count} times" if container.restart_count else "")
        for container in (status.router, status.agent)
        if container.state is not ContainerState.RUNNING or not container.ready
    ]
    return "; ".join(parts)


def _isolation_condition(status: PodStatus) -> Condition:
    if not status.degraded:
        return Condition.true("IsolationEnforced", "Reconciled", "every isolation control is in force")
    listed = "; ".join(
        f"{control.name} {control.state.value}: {control.detail}" for control in status.degraded
    )
    return Condition.false("IsolationEnforced", "IsolationDegraded", listed)


def _mesh_condition(spec: SandboxSpec, observed: SandboxObserved) -> Iterator[Condition]:
    """Yield whether the agent has the part in the mesh that was asked for; nothing when none was."""
    view = observed.mesh
    asked = spec.governance is not None and bool(spec.governance.trusted_peers)
    if view is None or not (view.edges or view.unavailable or asked):
        return
    if view.unavailable:
        yield Condition.false("MeshReady", "MeshAuthUnavailable", view.unavailable)
    elif not observed.relay_endpoint:
        yield Condition.false("MeshReady", "RelayNotRunning", "no relay runs here; no peer is reachable")
    elif view.one_sided:
        listed = ", ".join(view.one_sided[:10])
        message = f"these peers do not list this sandbox in trustedPeers, nor does a TrustGraph: {listed}"
        yield Condition.false("MeshReady", "PeerNotMutual", message)
    else:
        yield Condition.true("MeshReady", "Reconciled", f"{len(view.edges)} edges begin or end here")


def _allowlist_conditions(spec: SandboxSpec) -> Iterator[Condition]:
    network = spec.network_policy
    if network is None or (network.allowlist_ref is None and not network.allowed_endpoints):
        return
    if network.allowlist_ref is not None:
        message = "there is no egress service on this platform yet; nothing is reachable"
        yield Condition.false("AllowlistVerified", "EgressNotInstalled", message)
        yield Condition.false("AllowlistAuthoritative", "FailedClosed", message)
    else:
        yield Condition.false("AllowlistVerified", "Unsigned")
        yield Condition.false("AllowlistAuthoritative", "Inline")
