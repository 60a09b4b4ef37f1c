"""The `identify` and `rate_limit` gates: whose call this is, and whether the door has room for it."""

from kars_router.pipeline.call import Call
from kars_router.pipeline.verdicts import ADMIT, DecidedBy, Decision, Deny, Outcome, Verdict


class IdentifyGate:
    """Takes the policy of the door's sandbox; no policy in force means deny."""

    name = "identify"

    async def admit(self, call: Call) -> Verdict:
        """Bind the policy in force to the call, to its end."""
        call.policy = call.door.policy
        if call.policy is None:
            return Deny(
                status=403,
                error_type="policy_violation",
                code="no_policy_in_force",
                message="no policy is in force for this sandbox; everything is denied",
            )
        return ADMIT

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Nothing to give back."""


class RateLimitGate:
    """The door's token bucket and its slots."""

    name = "rate_limit"

    async def admit(self, call: Call) -> Verdict:
        """Take a token, then a slot (waiting for one a bounded time)."""
        wait_s = call.door.bucket.take()
        if wait_s is not None:
            return Deny(
                status=429,
                error_type="rate_limit_error",
                code="rate_limit_exceeded",
                message="too many calls a second from this sandbox",
                decision=Decision.RATE_LIMITED,
                decided_by=DecidedBy.ROUTER,
                retry_after_s=wait_s,
            )
        call.has_slot = await call.door.slots.acquire()
        if not call.has_slot:
            return Deny(
                status=503,
                error_type="rate_limit_error",
                code="too_many_concurrent_calls",
                message="too many calls of this sandbox are in flight",
                decision=Decision.RATE_LIMITED,
                retry_after_s=1.0,
            )
        return ADMIT

    def settle(self, call: Call, outcome: Outcome) -> None:  # noqa: ARG002 - the gate's interface
        """Give the slot back."""
        if call.has_slot:
            call.has_slot = False
            call.door.slots.release()
