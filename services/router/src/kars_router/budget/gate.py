"""The `reserve` gate: hold what a call may cost at most, charge what it did cost."""

import time
from collections.abc import Callable

from kars_router.budget.estimate import Estimator
from kars_router.budget.ledger import Overdrawn
from kars_router.pipeline.call import Call, InferenceCall
from kars_router.pipeline.verdicts import ADMIT, DecidedBy, Decision, Deny, Ending, Outcome, Verdict

BUDGET_CODES = frozenset(("budget_exceeded", "per_request_tokens_exceeded"))


class ReserveGate:
    """Reserves before dispatch; settles with the usage, or with the maximum when the usage is unknown."""

    name = "reserve"

    def __init__(self, estimator: Estimator, now_unix: Callable[[], float] = time.time) -> None:
        self._estimator = estimator
        self._now_unix = now_unix

    async def admit(self, call: Call) -> Verdict:
        """Check the cap of one call and both windows, and reserve."""
        if not isinstance(call, InferenceCall):
            return ADMIT
        limits = call.in_force.budget
        ledger = call.door.ledger
        prompt = self._estimator.prompt(call.request)
        call.max_output = self._estimator.output(call.request, prompt, limits.per_request)
        total = prompt + call.max_output * call.request.choices
        if limits.per_request and total > limits.per_request:
            ledger.refuse()
            return _exceeded(
                "per_request_tokens_exceeded",
                f"this call may cost {total} tokens, about {prompt} of them prompt;"
                f" the cap is {limits.per_request}",
                None,
            )
        overdrawn = ledger.reserve(call.id, total, limits)
        if overdrawn is not None:
            ledger.refuse()
            return self._overdrawn(overdrawn, total)
        call.reserved, call.reservation_day, call.reservation_open = total, ledger.day(), True
        return ADMIT

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Charge: the usage when it is known, the maximum when it may have been spent, else nothing."""
        if not call.reservation_open:
            return
        call.reservation_open = False
        if call.usage is not None:
            charged = call.usage.input_tokens + call.usage.output_tokens
        elif call.answered or outcome.ending is Ending.COMPLETED:
            charged = call.reserved
        else:
            charged = 0
        if call.maybe_spent:
            # A provider that went silent may have worked; a later success does not undo that.
            charged = max(charged, call.reserved)
        call.charged = charged
        call.door.ledger.settle(call.id, charged)

    def _overdrawn(self, overdrawn: Overdrawn, total: int) -> Deny:
        return _exceeded(
            "budget_exceeded",
            f"{overdrawn.window} token budget: {overdrawn.used} of {overdrawn.limit} used or reserved,"
            f" this call may cost {total}; it resets at {overdrawn.resets_at.isoformat()}",
            max(1.0, overdrawn.resets_at.timestamp() - self._now_unix()),
        )


def _exceeded(code: str, message: str, retry_after_s: float | None) -> Deny:
    return Deny(
        status=429,
        error_type="token_budget_exceeded",
        code=code,
        message=message,
        decision=Decision.BUDGET_EXCEEDED,
        decided_by=DecidedBy.INFERENCE_POLICY,
        retry_after_s=retry_after_s,
    )
