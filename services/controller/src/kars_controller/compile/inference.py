"""InferencePolicy compiled: models in order of preference, budgets, content ceilings."""

from kars.policy.v1 import policy_pb2
from kars_common.errors import FailedPreconditionError

from kars_controller.api_types.inference_policy import ContentSafety, InferencePolicySpec

_SEVERITIES = {
    None: policy_pb2.SEVERITY_UNSPECIFIED,
    "Safe": policy_pb2.SEVERITY_SAFE,
    "Low": policy_pb2.SEVERITY_LOW,
    "Medium": policy_pb2.SEVERITY_MEDIUM,
    "High": policy_pb2.SEVERITY_HIGH,
}


def compile_inference(spec: InferencePolicySpec) -> policy_pb2.InferenceRules:
    """Return the rules of a policy that a sandbox may be bound to.

    Prompt shields are required of the provider only when the policy says so: providers that report none
    would otherwise be refused by policies that never spoke of them.

    Raises:
        FailedPreconditionError: `policy_not_usable`: no primary model, or content in a bundle that is not
            fetched.
    """
    if spec.bundle_ref is not None:
        raise FailedPreconditionError(
            "policy_not_usable", "its content is in bundleRef, which is not fetched yet"
        )
    if spec.model_preference is None:
        raise FailedPreconditionError("policy_not_usable", "it names no spec.modelPreference.primary")
    rules = policy_pb2.InferenceRules()
    for model in (spec.model_preference.primary, *spec.model_preference.fallback):
        rules.models.add(provider=model.provider, deployment=model.deployment)
    if spec.token_budget is not None:
        rules.token_budget.per_request_tokens = spec.token_budget.per_request_tokens or 0
        rules.token_budget.daily_tokens = spec.token_budget.daily_tokens or 0
        rules.token_budget.monthly_tokens = spec.token_budget.monthly_tokens or 0
    if spec.content_safety is not None:
        rules.content_safety.CopyFrom(_safety(spec.content_safety))
    return rules


def _safety(safety: ContentSafety) -> policy_pb2.ContentSafety:
    return policy_pb2.ContentSafety(
        hate=_SEVERITIES[safety.hate],
        self_harm=_SEVERITIES[safety.self_harm],
        sexual=_SEVERITIES[safety.sexual],
        violence=_SEVERITIES[safety.violence],
        require_prompt_shields=bool(safety.require_prompt_shields),
    )
