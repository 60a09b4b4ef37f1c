"""ToolPolicy compiled: the rules of its profile, and the limits of the tool that it names."""

from kars.policy.v1 import policy_pb2
from kars_common.errors import FailedPreconditionError, InvalidInputError

from kars_controller import profiles
from kars_controller.api_types.tool_policy import RateLimit, ToolPolicySpec
from kars_controller.profiles import durations

DEFAULT_TRUST_THRESHOLD = 500
_MAX_INT32 = 2**31 - 1


def compile_governance(
    spec: ToolPolicySpec, trust_threshold: int = DEFAULT_TRUST_THRESHOLD
) -> policy_pb2.GovernanceRules:
    """Return the rules of a policy that a sandbox may be bound to.

    Raises:
        FailedPreconditionError: `policy_not_usable`: without a profile in it there is nothing to enforce.
    """
    profile = spec.agt_profile
    if profile is not None and profile.bundle_ref is not None:
        raise FailedPreconditionError(
            "policy_not_usable", "its profile is in a bundleRef, which is not fetched yet"
        )
    if profile is None or profile.inline is None or not profile.inline.strip():
        raise FailedPreconditionError("policy_not_usable", "it has no spec.agtProfile.inline")
    try:
        parsed = profiles.parse(profile.inline)
    except InvalidInputError as exc:
        raise FailedPreconditionError("policy_not_usable", exc.message) from exc
    rules = policy_pb2.GovernanceRules(
        default_verdict=parsed.default_verdict, rules=parsed.rules, trust_threshold=trust_threshold
    )
    tool = _tool_rule(spec)
    if tool is not None:
        rules.tools.append(tool)
    return rules


def ungoverned(trust_threshold: int = DEFAULT_TRUST_THRESHOLD) -> policy_pb2.GovernanceRules:
    """Return the rules of a sandbox whose governance is switched off: every action is allowed."""
    return policy_pb2.GovernanceRules(
        default_verdict=policy_pb2.VERDICT_ALLOW, trust_threshold=trust_threshold
    )


def _tool_rule(spec: ToolPolicySpec) -> policy_pb2.ToolRule | None:
    """Return the limits of the policy's tool, of every tool when it names none.

    `never` and no mode at all ask nobody. `aboveThreshold` asks for every call: the router does not see
    amounts, and a control that cannot look must not let pass.
    """
    approval, limit = spec.approval, spec.rate_limit
    asks = approval is not None and approval.mode in ("always", "aboveThreshold")
    limited = limit is not None and bool(limit.rps)
    if not asks and not limited:
        return None
    rule = policy_pb2.ToolRule(
        tool=spec.applies_to.tool or "*", mcp_server=spec.applies_to.mcp_server or "", approval_required=asks
    )
    if approval is not None and asks:
        rule.approval_channel = approval.channel or ""
    if limit is not None and limit.rps:
        rule.rate_rps = min(limit.rps, _MAX_INT32)
        rule.rate_burst = _burst(limit)
    return rule


def _burst(limit: RateLimit) -> int:
    rps = limit.rps or 0
    if limit.burst is not None:
        burst = limit.burst
    elif limit.window is not None:
        burst = rps * (durations.parse_ms(limit.window) or 1000) // 1000
    else:
        burst = rps
    return max(1, min(burst, _MAX_INT32))
