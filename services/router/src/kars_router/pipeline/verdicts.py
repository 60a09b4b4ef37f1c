"""What a gate may answer, and how a call can end.

Plain values. They know neither HTTP nor gRPC; `status` is the code that every
wire format of the door shares.
"""

import enum
from dataclasses import dataclass, field, replace


class Decision(enum.StrEnum):
    """The documented values of the `x-kars-decision` header and of audit records."""

    ALLOWED = "Allowed"
    BLOCKED = "Blocked"
    RATE_LIMITED = "RateLimited"
    BUDGET_EXCEEDED = "BudgetExceeded"


class DecidedBy(enum.StrEnum):
    """Which kind of control decided: a policy kind, the router's own limits, or the provider."""

    ROUTER = "Router"
    INFERENCE_POLICY = "InferencePolicy"
    TOOL_POLICY = "ToolPolicy"
    PROVIDER = "Provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """The gate lets the call pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """The gate refuses the call.

    Attributes:
        status: HTTP status, 4xx or 5xx.
        error_type: coarse class in the wire format (`policy_violation`, ...).
        code: stable lower_snake code that programs read.
        message: one sentence for people; holds no secret and no prompt text.
        decision: value of the decision header.
        decided_by: which kind of control spoke.
        retry_after_s: when another try can succeed; None when that is unknown or never.
        gate: name of the gate, filled in by the pipeline.
    """

    status: int
    error_type: str
    code: str
    message: str
    decision: Decision = Decision.BLOCKED
    decided_by: DecidedBy = DecidedBy.ROUTER
    retry_after_s: float | None = None
    gate: str = ""

    def at(self, gate: str) -> "Deny":
        """Return this denial with the gate's name, unless it already has one."""
        return self if self.gate else replace(self, gate=gate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The gate wants a person to decide before the call may pass.

    Attributes:
        action: canonical action that waits (redacted, at most 256 bytes).
        detail: redacted arguments for the approver.
        rule: name of the rule that asked.
        min_approvals: distinct approvers needed.
    """

    action: str
    detail: str
    rule: str
    min_approvals: int = 1


Verdict = Admit | Deny | Hold
ADMIT = Admit()


class Ending(enum.StrEnum):
    """How a call that was admitted ended."""

    COMPLETED = "completed"
    DENIED = "denied"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a call, as every gate's `settle` and the audit record see it."""

    ending: Ending
    status: int = 200
    denial: Deny | None = None


@dataclass(slots=True, kw_only=True)
class Findings:
    """What guards noticed on the way; ends in the audit record."""

    redactions: dict[str, int] = field(default_factory=dict)
    removed_tools: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    tool_actions: list[str] = field(default_factory=list)


def internal_error() -> Deny:
    """Return the denial for a gate that raised: closed, without inner text."""
    return Deny(
        status=500, error_type="internal_error", code="gate_failed", message="the call could not be governed"
    )
