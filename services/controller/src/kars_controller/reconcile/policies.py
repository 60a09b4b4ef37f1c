"""The reconcilers of InferencePolicy and ToolPolicy: compiled, and enforced by whom."""

from collections.abc import Iterable
from typing import Any

from kars_common.errors import InvalidInputError, KarsError

from kars_controller.api_types import parse_spec
from kars_controller.api_types.base import dig
from kars_controller.compile import bundle as bundles
from kars_controller.compile import digests, governance
from kars_controller.reconcile import conditions
from kars_controller.reconcile.conditions import Condition, Event
from kars_controller.reconcile.plan import AWAITING_S, FAILED_S, STEADY_S, Plan, PolicyObserved
from kars_controller.resources import Document, EventType, generation
from kars_controller.resources.timestamps import rfc3339


def reconcile_inference_policy(policy: Document, observed: PolicyObserved) -> Plan:
    """Return the status of an InferencePolicy."""
    try:
        spec = parse_spec(policy)
    except InvalidInputError as exc:
        return _invalid(policy, observed, exc)
    if spec.bundle_ref is not None:
        message = "signed bundles are not fetched yet; put the policy into the resource"
        return _finish(policy, observed, "Degraded", conditions.degraded("BundleNotSupported", message), {})
    body = digests.inference_policy_body(spec)
    digest = bundles.inference_digest(spec)
    phase, core = _enforcement(observed, digest)
    fields = {"versionHash": digests.version_hash(body), "compiledDigest": digest}
    fields |= {"loadedDigest": digest} if phase == "Ready" else {}
    fields["lastCompiledAt"] = _compiled_at(policy, "compiledDigest", digest, observed)
    return _finish(policy, observed, phase, core, fields)


def reconcile_tool_policy(policy: Document, observed: PolicyObserved) -> Plan:
    """Return the status of a ToolPolicy."""
    try:
        spec = parse_spec(policy)
    except InvalidInputError as exc:
        return _invalid(policy, observed, exc)
    profile = spec.agt_profile
    if profile is not None and profile.bundle_ref is not None:
        message = "signed bundles are not fetched yet; put the profile into the resource"
        return _finish(policy, observed, "Degraded", conditions.degraded("BundleNotSupported", message), {})
    digest = bundles.tool_digest(spec)
    if not digest:
        core = conditions.ready("Reconciled", "there is no profile in it; it cannot govern a sandbox")
        return _finish(policy, observed, "Ready", core, {})
    try:
        governance.compile_governance(spec)
    except KarsError as exc:
        return _invalid(policy, observed, exc)
    phase, core = _enforcement(observed, digest)
    fields = {"versionHash": digests.version_hash(digests.tool_policy_body(spec)), "agtProfileDigest": digest}
    fields |= {"loadedDigest": digest} if phase == "Ready" else {}
    fields["lastCompiledAt"] = _compiled_at(policy, "agtProfileDigest", digest, observed)
    return _finish(policy, observed, phase, core, fields)


def _enforcement(observed: PolicyObserved, digest: str) -> tuple[str, tuple[Condition, ...]]:
    if not observed.users:
        message = "no running sandbox refers to this policy"
        return "Compiled", conditions.progressing("NoSandboxesReferencing", message)
    waiting = [user for user in observed.users if not user.enforces]
    if waiting:
        listed = ", ".join(f"{user.name}{f' ({user.detail})' if user.detail else ''}" for user in waiting)
        return "Compiled", conditions.progressing(
            "AwaitingRouterEnforcement", f"not yet enforced by: {listed}"
        )
    names = ", ".join(user.name for user in observed.users)
    return "Ready", conditions.ready("RouterEnforcing", f"{digest} is enforced by: {names}")


def _invalid(policy: Document, observed: PolicyObserved, error: KarsError) -> Plan:
    return _finish(policy, observed, "Degraded", conditions.degraded("InvalidSpec", error.message), {})


def _finish(
    policy: Document,
    observed: PolicyObserved,
    phase: str,
    core: Iterable[Condition],
    fields: dict[str, Any],
) -> Plan:
    core = tuple(core)
    status = {
        "phase": phase,
        "observedGeneration": generation(policy),
        "conditions": conditions.stamped(policy, core, observed.now),
        **fields,
    }
    events = list(conditions.transition_events(policy, core))
    if core[0].reason == "AwaitingRouterEnforcement":
        events = [Event(EventType.WARNING, "PolicyNotEnforced", event.message) for event in events]
    requeue_s = FAILED_S if phase == "Degraded" else STEADY_S if phase == "Ready" else AWAITING_S
    return Plan(status=status, events=tuple(events), requeue_s=requeue_s)


def _compiled_at(policy: Document, field: str, digest: str, observed: PolicyObserved) -> str:
    """Return when this digest was first compiled: the time moves only with the digest."""
    before = dig(policy, "status", "lastCompiledAt")
    return before if before and dig(policy, "status", field) == digest else rfc3339(observed.now)
