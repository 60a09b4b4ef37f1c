"""What the audit log says about calls.

One admission record before a provider is asked, one record at the end, or one
`call.denied` when the call never passed the entry gates. Denials that an agent
can produce without limit (rate limit, no policy) are thinned, with a count of
those left out, so that they cannot fill the disk.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from kars_router.limits.bucket import TokenBucket
from kars_router.pipeline.call import Call
from kars_router.pipeline.verdicts import Deny, Ending, Outcome

_THINNED_GATES = frozenset(("identify", "rate_limit", "door"))
_THINNED_PER_S = 10.0
_THINNED_BURST = 50
# An answer may ask for more tool calls than fit into one record; the rest go before it, none is left out.
_ACTIONS_A_RECORD = 32


class Log(Protocol):
    """The part of the audit log that writing needs (`kars_common.audit.AuditLog`)."""

    @property
    def failed(self) -> bool:
        """Whether the log refuses for ever."""

    def append(self, type: str, fields: Mapping[str, object], *, staged: bool = False) -> int:  # noqa: A002 - the log's own name for it
        """Write one record, or stage it until the next sync; returns its sequence number."""

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        """Wait until the record is on disk."""


class CallRecorder:
    """Writes call records; counters of what was thinned are per process."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._thinning = TokenBucket(_THINNED_PER_S, _THINNED_BURST)
        self._left_out = 0

    @property
    def writable(self) -> bool:
        """False when the log refuses for ever; then nothing may be released."""
        return not self._log.failed

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        """Wait until a record is on disk; a negative number stands for a thinned record."""
        if seq >= 0:
            await self._log.durable(seq, patient=patient)

    def admitted(self, call: Call) -> int:
        """Write `call.admitted`: the reservation that a restart must honour."""
        fields = self._common(call)
        if call.reservation_open:
            fields["reserved"] = call.reserved
            fields["day"] = call.reservation_day
        return self._log.append("call.admitted", fields | dict(call.record()))

    def ended(self, call: Call, outcome: Outcome, *, awaited: bool) -> int:
        """Write `call.settled` for an admitted call, `call.denied` for any other.

        A settlement that its caller goes on to await is staged: the sync that carries it writes it.
        """
        if call.admitted_seq is None:
            if outcome.denial is None:
                return -1  # cancelled before any gate had spoken: nothing happened
            return self.refused(outcome.denial, self._common(call) | dict(call.record()))
        fields = self._common(call) | dict(call.record())
        fields |= {"ending": outcome.ending.value, "status": outcome.status, "charged": call.charged}
        if call.reserved and call.usage is None and outcome.ending is not Ending.DENIED:
            fields["estimated"] = call.charged > 0
        if outcome.denial is not None:
            fields |= _denial(outcome.denial)
        findings = call.findings
        if findings.redactions:
            fields["redactions"] = dict(findings.redactions)
        if findings.removed_tools:
            fields["removed_tools"] = findings.removed_tools
        for start in range(0, len(findings.tool_actions) - _ACTIONS_A_RECORD, _ACTIONS_A_RECORD):
            actions = findings.tool_actions[start : start + _ACTIONS_A_RECORD]
            self._log.append("call.tools", {**self._common(call), "tool_actions": actions})
        if findings.tool_actions:
            rest = len(findings.tool_actions) % _ACTIONS_A_RECORD or _ACTIONS_A_RECORD
            fields["tool_actions"] = findings.tool_actions[-rest:]
        return self._log.append("call.settled", fields, staged=awaited)

    def refused(self, denial: Deny, fields: Mapping[str, Any]) -> int:
        """Write `call.denied`, or leave it out when there are too many of its kind; returns -1 then."""
        if denial.gate in _THINNED_GATES and self._thinning.take() is not None:
            self._left_out += 1
            return -1
        record = {**fields, **_denial(denial), "status": denial.status}
        if denial.gate in _THINNED_GATES and self._left_out:
            record["left_out"], self._left_out = self._left_out, 0
        return self._log.append("call.denied", record)

    def event(self, kind: str, fields: Mapping[str, Any]) -> int:
        """Write any other record (`approval.*`, `policy.*`, `credential.*`, `router.*`)."""
        return self._log.append(kind, fields)

    def _common(self, call: Call) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "call": call.id,
            "sandbox": call.door.sandbox,
            "kind": call.kind,
            "trace": call.trace_id,
        }
        if call.action is not None:
            fields["action"] = call.action.shown
        if call.policy is not None:
            fields["policy"] = call.policy.version
        return fields


def _denial(denial: Deny) -> dict[str, Any]:
    return {
        "gate": denial.gate,
        "reason": denial.code,
        "decision": denial.decision.value,
        "decided_by": denial.decided_by.value,
        "message": denial.message,
    }
