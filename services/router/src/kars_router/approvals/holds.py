"""Calls that wait for a person, bounded in number and in time.

No decision before expiry is a denial, also while the controller is away. A
caller that hangs up withdraws. Everything that happens to a hold is a record,
durable before the call goes on. Who decides arrives through `decide`; who is
told goes through `Board`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kars.governance.v1 import governance_pb2

from kars_router.pipeline.call import Call
from kars_router.pipeline.ids import new_call_id
from kars_router.pipeline.verdicts import ADMIT, DecidedBy, Deny, Hold, Verdict

_log = logging.getLogger(__name__)
_KEEPALIVE_S = 15.0

PENDING = governance_pb2.APPROVAL_STATE_PENDING
GRANTED = governance_pb2.APPROVAL_STATE_GRANTED
DENIED = governance_pb2.APPROVAL_STATE_DENIED
EXPIRED = governance_pb2.APPROVAL_STATE_EXPIRED
WITHDRAWN = governance_pb2.APPROVAL_STATE_WITHDRAWN
_NAMES = {GRANTED: "granted", DENIED: "denied", EXPIRED: "expired", WITHDRAWN: "withdrawn"}


class Board(Protocol):
    """Where holds are published; must not wait."""

    def publish(self, approval: governance_pb2.Approval) -> None:
        """Show a new hold."""

    def close(self, approval: governance_pb2.Approval) -> None:
        """Say that a hold ended here, without a decision of a person."""


class Records(Protocol):
    """Writes audit records."""

    def event(self, kind: str, fields: Mapping[str, Any]) -> int:
        """Write one record; returns its sequence number."""

    async def durable(self, seq: int) -> None:
        """Wait until it is on disk."""


@dataclass(slots=True, eq=False)
class _Pending:
    approval: governance_pb2.Approval
    decided: asyncio.Future[governance_pb2.Approval] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class HoldRegistry:
    """All holds of one router."""

    def __init__(
        self, records: Records, *, expiry_s: float, max_holds: int, now_unix: Callable[[], float] = time.time
    ) -> None:
        self._records = records
        self._expiry_s = expiry_s
        self._max_holds = max_holds
        self._now_unix = now_unix
        self._pending: dict[str, _Pending] = {}
        self._boards: dict[str, Board] = {}

    def attach(self, sandbox: str, board: Board) -> None:
        """Publish the holds of a sandbox on a board from now on."""
        self._boards[sandbox] = board

    def pending(self, sandbox: str) -> list[governance_pb2.Approval]:
        """Return what a sandbox's calls wait for, oldest first."""
        return [
            item.approval
            for item in self._pending.values()
            if f"{item.approval.sandbox.namespace}/{item.approval.sandbox.name}" == sandbox
        ]

    def decide(self, sandbox: str, decided: governance_pb2.Approval) -> bool:
        """Take a person's final decision; False when nothing here waits for it.

        Only a decision on this sandbox's own hold counts, and a grant only with
        as many distinct approvers as the rule asked for.
        """
        item = self._pending.get(decided.id)
        if item is None or item.decided.done():
            return False
        own = item.approval
        if f"{own.sandbox.namespace}/{own.sandbox.name}" != sandbox or decided.state not in {GRANTED, DENIED}:
            return False
        if decided.state == GRANTED and len(set(decided.granted_by)) < own.min_approvals:
            _log.warning("a grant with too few approvers was ignored", extra={"approval": decided.id})
            return False
        item.decided.set_result(decided)
        return True

    async def wait(self, call: Call, hold: Hold) -> Verdict:
        """Park a call until it is decided or expires.

        Raises:
            asyncio.CancelledError: the caller hung up, or the router stops; the hold is withdrawn.
        """
        if len(self._pending) >= self._max_holds:
            return _refused("too_many_holds", "too many calls wait for approval", status=503)
        item = _Pending(self._approval(call, hold))
        approval = item.approval
        self._pending[approval.id] = item
        board = self._boards.get(call.door.sandbox)
        try:
            await self._record("approval.requested", approval)
            if board is not None:
                board.publish(approval)
            call.release.watch()
            state, decided = await self._outcome(call, item)
        except BaseException:
            self._close(item, WITHDRAWN, board)
            self._records.event("approval.withdrawn", _fields(approval))
            raise
        finally:
            self._pending.pop(approval.id, None)
        if state == EXPIRED:
            self._close(item, EXPIRED, board)
        await self._record(f"approval.{_NAMES[state]}", decided)
        if state == GRANTED:
            return ADMIT
        if state == EXPIRED:
            return _refused("approval_expired", f"nobody approved {approval.action} in time")
        return _refused("approval_denied", f"an operator denied {approval.action}")

    async def _outcome(
        self, call: Call, item: _Pending
    ) -> tuple["governance_pb2.ApprovalState.ValueType", governance_pb2.Approval]:
        """Wait for the decision, keeping the caller's connection alive."""
        deadline = asyncio.get_running_loop().time() + self._expiry_s
        while True:
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                return EXPIRED, item.approval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _KEEPALIVE_S)):
                    decided = await asyncio.shield(item.decided)
                    return decided.state, decided
            await call.release.waiting(item.approval.id)

    def _approval(self, call: Call, hold: Hold) -> governance_pb2.Approval:
        now = self._now_unix()
        approval = governance_pb2.Approval(
            id=new_call_id(),
            action=hold.action,
            detail=hold.detail,
            rule=hold.rule,
            state=PENDING,
            min_approvals=hold.min_approvals,
            call_id=call.id,
        )
        approval.sandbox.namespace, approval.sandbox.name = call.door.namespace, call.door.name
        approval.created_at.FromMicroseconds(int(now * 1e6))
        approval.expires_at.FromMicroseconds(int((now + self._expiry_s) * 1e6))
        return approval

    async def _record(self, kind: str, approval: governance_pb2.Approval) -> None:
        await self._records.durable(self._records.event(kind, _fields(approval)))

    @staticmethod
    def _close(item: _Pending, state: "governance_pb2.ApprovalState.ValueType", board: Board | None) -> None:
        item.approval.state = state
        if board is not None:
            board.close(item.approval)


def _fields(approval: governance_pb2.Approval) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "approval": approval.id,
        "sandbox": f"{approval.sandbox.namespace}/{approval.sandbox.name}",
        "call": approval.call_id,
        "action": approval.action,
        "rule": approval.rule,
    }
    if approval.decided_by:
        fields["decided_by"] = approval.decided_by
    if approval.granted_by:
        fields["granted_by"] = list(approval.granted_by)
    if approval.note:
        fields["note"] = approval.note[:512]
    return fields


def _refused(code: str, message: str, *, status: int = 403) -> Deny:
    return Deny(
        status=status,
        error_type="policy_violation",
        code=code,
        message=message,
        decided_by=DecidedBy.TOOL_POLICY,
    )
