"""The KarsSandbox reconciler: what bundle and pod it should have, and how it is.

Order: is the spec runnable here, are its policies there and usable, are its models' providers configured;
then bundle and pod; then what was observed decides the conditions. When a policy in use is taken away the
router is given a bundle that denies everything.
"""

from dataclasses import dataclass

from kars.policy.v1 import policy_pb2
from kars_common.errors import FailedPreconditionError, InvalidInputError, KarsError

from kars_controller.api_types import parse_spec
from kars_controller.api_types.sandbox import SandboxSpec
from kars_controller.compile import bundle as bundles
from kars_controller.compile import mesh
from kars_controller.compile.governance import DEFAULT_TRUST_THRESHOLD
from kars_controller.platforms.base import PodPlan
from kars_controller.providers import ProviderShare
from kars_controller.reconcile import byo, conditions, pod, sandbox_status
from kars_controller.reconcile.plan import AWAITING_S, FAILED_S, STEADY_S, Plan, SandboxObserved
from kars_controller.resources import Document

_REASONS = {
    "runtime_not_installed": "RuntimeNotInstalled",
    "adapter_missing": "AdapterMissing",
    "byo_contract_invalid": "BYOContractInvalid",
    "agent_code_unsupported": "AgentCodeUnsupported",
    "agent_code_unavailable": "AgentCodeUnavailable",
    "isolation_unavailable": "IsolationUnavailable",
    "policy_not_usable": "SpecInvalid",
    "schema_invalid": "SpecInvalid",
    "too_large": "PolicyTooLarge",
    "dependency_missing": "DependencyMissing",
    "inference_policy_not_found": "InferencePolicyNotFound",
    "tool_policy_not_found": "ToolPolicyNotFound",
}


@dataclass(frozen=True, kw_only=True)
class _Desired:
    bundle: policy_pb2.PolicyBundle | None = None
    pod: PodPlan | None = None
    problem: KarsError | None = None


def reconcile(sandbox: Document, observed: SandboxObserved) -> Plan:
    """Return the plan of one sandbox that is not being deleted."""
    try:
        spec = parse_spec(sandbox)
    except InvalidInputError as exc:
        return _plan(sandbox, observed, None, _Desired(problem=exc))
    return _plan(sandbox, observed, spec, _desired(sandbox, spec, observed))


def reason_of(error: KarsError) -> str:
    """Return the CamelCase reason that conditions use for an error."""
    return _REASONS.get(error.reason) or "".join(part.capitalize() for part in error.reason.split("_"))


def _desired(sandbox: Document, spec: SandboxSpec, observed: SandboxObserved) -> _Desired:
    try:
        bundle = _bundle(sandbox, spec, observed)
    except KarsError as exc:
        taken_away = observed.published is not None
        return _Desired(bundle=bundles.deny_all(sandbox) if taken_away else None, problem=exc)
    try:
        plan = _pod(sandbox, spec, bundle, observed)
    except KarsError as exc:
        return _Desired(bundle=bundle, problem=exc)
    return _Desired(bundle=bundle, pod=plan, problem=observed.apply_error)


def _bundle(sandbox: Document, spec: SandboxSpec, observed: SandboxObserved) -> policy_pb2.PolicyBundle:
    if observed.inference_policy is None:
        raise FailedPreconditionError("inference_policy_not_found", observed.missing["InferencePolicy"])
    inference = (observed.inference_policy, parse_spec(observed.inference_policy))
    governance = spec.governance
    threshold = governance.trust_threshold if governance is not None else DEFAULT_TRUST_THRESHOLD
    if governance is not None and not governance.enabled:
        return _with_mesh(bundles.compile_bundle(sandbox, inference, None, threshold), observed, threshold)
    if observed.tool_policy is None:
        raise FailedPreconditionError("tool_policy_not_found", observed.missing["ToolPolicy"])
    tool = (observed.tool_policy, parse_spec(observed.tool_policy))
    return _with_mesh(bundles.compile_bundle(sandbox, inference, tool, threshold), observed, threshold)


def _with_mesh(
    bundle: policy_pb2.PolicyBundle, observed: SandboxObserved, threshold: int
) -> policy_pb2.PolicyBundle:
    if observed.mesh is not None and not observed.mesh.unavailable:
        bundle.mesh_access.CopyFrom(mesh.access(observed.mesh, observed.relay_endpoint, threshold))
    return bundle


def _pod(
    sandbox: Document, spec: SandboxSpec, bundle: policy_pb2.PolicyBundle, observed: SandboxObserved
) -> PodPlan:
    if spec.sandbox.isolation == "confidential":
        raise FailedPreconditionError(
            "isolation_unavailable",
            "isolation confidential needs a hardware enclave, which this platform lacks",
        )
    byo.check(spec.runtime.byo, strict=observed.byo_strict)
    share = observed.providers.share(model.provider for model in bundle.inference.models)
    if share.unknown:
        raise FailedPreconditionError("dependency_missing", _unconfigured(share, observed))
    return pod.build(
        sandbox=sandbox,
        spec=spec,
        model=bundle.inference.models[0].deployment,
        runtimes=observed.runtimes,
        router=observed.router,
        providers=share,
        code_dir=observed.code_dir,
        mesh=_mesh_mount(observed),
    )


def _mesh_mount(observed: SandboxObserved) -> pod.MeshMount | None:
    if observed.mesh is None or observed.mesh_dir is None:
        return None
    return pod.MeshMount(peer=str(observed.mesh.peer), directory=observed.mesh_dir)


def _unconfigured(share: ProviderShare, observed: SandboxObserved) -> str:
    if observed.providers.problem:
        return f"no model provider is configured: {observed.providers.problem}"
    known = ", ".join(sorted(observed.providers.entries)) or "none"
    return f"model provider {', '.join(share.unknown)} is not configured; configured: {known}"


def _plan(sandbox: Document, observed: SandboxObserved, spec: SandboxSpec | None, desired: _Desired) -> Plan:
    if desired.problem is not None:
        reason, message = reason_of(desired.problem), desired.problem.message
        core = conditions.degraded(reason, message)
        phase = "Degraded"
    else:
        phase, core = sandbox_status.judge(observed, desired.bundle, desired.pod)
    extra = sandbox_status.details(sandbox, spec, observed, desired.bundle)
    all_conditions = (*core, *sandbox_status.runtime_condition(desired.problem, reason_of), *extra)
    status = sandbox_status.status(sandbox, spec, observed, phase, all_conditions)
    settled = phase in ("Running", "Suspended", "Succeeded")
    return Plan(
        status=status,
        events=tuple(conditions.transition_events(sandbox, all_conditions)),
        requeue_s=STEADY_S if settled else FAILED_S if desired.problem is not None else AWAITING_S,
        bundle=desired.bundle,
        pod=desired.pod,
        code=pod.git_source(sandbox, spec.runtime) if spec is not None and desired.pod is not None else None,
    )
