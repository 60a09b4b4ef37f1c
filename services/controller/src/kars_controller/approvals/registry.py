"""All approvals: published by enforcement points, decided by operators, kept 30 days after their end.

An approval ends once: granted by enough distinct operators, denied by one, expired, or withdrawn by its
enforcement point. What an enforcement point says about somebody else's approval is refused.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from kars.governance.v1 import governance_pb2
from kars_common.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from kars_common.spiffe import SpiffeId

from kars_controller.approvals import validation
from kars_controller.platforms.base import SandboxKey
from kars_controller.storage import Database

PENDING = governance_pb2.APPROVAL_STATE_PENDING
GRANTED = governance_pb2.APPROVAL_STATE_GRANTED
DENIED = governance_pb2.APPROVAL_STATE_DENIED
EXPIRED = governance_pb2.APPROVAL_STATE_EXPIRED
WITHDRAWN = governance_pb2.APPROVAL_STATE_WITHDRAWN

_KEPT_S = 30 * 24 * 3600.0
_MAX_PENDING = 256
_SHORTEST_PREFIX = 6
_MAX_NOTE_CHARS = 512

Approval = governance_pb2.Approval
Listener = Callable[[Approval], None]


class ApprovalRegistry:
    """The persistent registry. Listeners hear of every change, in order."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._now = now
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every changed approval; return what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def publish(self, sandbox: SandboxKey, approval: Approval) -> Approval:
        """Take a hold from its enforcement point; again, it is the answer to a reconnect.

        Returns:
            The approval as it is now; a decided one must be told to the enforcement point.

        Raises:
            PermissionDeniedError: `not_own_sandbox`, the id or the content is another sandbox's.
            InvalidInputError: `approval_invalid`.
            ResourceExhaustedError: `too_many_approvals` are pending for this sandbox.
        """
        known = self._find(approval.id)
        if known is not None:
            _check_owner(known, sandbox)
            return known
        fresh = validation.checked(approval, sandbox, self._now())
        pending = self._database.row(
            "SELECT count(*) AS n FROM approvals WHERE namespace = ? AND sandbox = ? AND state = ?",
            (*sandbox, PENDING),
        )
        if pending is not None and pending["n"] >= _MAX_PENDING:
            raise ResourceExhaustedError("too_many_approvals", f"{_MAX_PENDING} calls wait already")
        self._store(fresh)
        return fresh

    def close(
        self, sandbox: SandboxKey, approval_id: str, state: "governance_pb2.ApprovalState.ValueType"
    ) -> None:
        """Take the end of a hold from its enforcement point; one that ended already stays as it is.

        Raises:
            PermissionDeniedError: `not_own_sandbox`.
            InvalidInputError: `approval_invalid`, only expired and withdrawn are its to say.
        """
        known = self._find(approval_id)
        if known is None:
            return
        _check_owner(known, sandbox)
        if state not in (EXPIRED, WITHDRAWN):
            raise InvalidInputError("approval_invalid", "an enforcement point may only expire or withdraw")
        if known.state == PENDING:
            known.state = state
            self._store(known)

    def decide(self, id_or_prefix: str, operator: SpiffeId, *, grant: bool, note: str) -> Approval:
        """Count an operator's word.

        Raises:
            NotFoundError: `approval_not_found`, nothing pending fits, or several fit, open or closed.
            FailedPreconditionError: `approval_closed`, `approver_already_counted`.
            InvalidInputError: `approval_invalid`, the note is too long.
        """
        if len(note) > _MAX_NOTE_CHARS:
            raise InvalidInputError("approval_invalid", f"note has more than {_MAX_NOTE_CHARS} characters")
        self.expire()
        approval = self._pending(id_or_prefix)
        who = str(operator)
        if grant and who in approval.granted_by:
            raise FailedPreconditionError("approver_already_counted", f"{operator.path} granted this already")
        if grant:
            approval.granted_by.append(who)
        if note:
            approval.note = note
        if not grant or len(set(approval.granted_by)) >= max(1, approval.min_approvals):
            approval.state = GRANTED if grant else DENIED
            approval.decided_by = who
            approval.decided_at.FromDatetime(self._now())
        self._store(approval)
        return approval

    def get(self, approval_id: str) -> Approval | None:
        """Return an approval by its full id."""
        return self._find(approval_id)

    def list_newest(self, namespace: str = "", *, include_closed: bool = False) -> list[Approval]:
        """Return approvals, newest first."""
        self.expire()
        rows = self._database.rows(
            "SELECT document FROM approvals WHERE (? = '' OR namespace = ?) AND (? OR state = ?)"
            " ORDER BY id DESC",
            (namespace, namespace, include_closed, PENDING),
        )
        return [Approval.FromString(row["document"]) for row in rows]

    def expire(self) -> float | None:
        """End what nobody decided in time, forget what ended long ago; return seconds to the next expiry."""
        now = self._now().timestamp()
        rows = self._database.rows(
            "SELECT document FROM approvals WHERE state = ? AND expires_at <= ?", (PENDING, now)
        )
        for row in rows:
            approval = Approval.FromString(row["document"])
            approval.state = EXPIRED
            self._store(approval)
        with self._database.transaction():
            self._database.execute("DELETE FROM approvals WHERE closed_at < ?", (now - _KEPT_S,))
        following = self._database.row(
            "SELECT min(expires_at) AS soonest FROM approvals WHERE state = ?", (PENDING,)
        )
        soonest = None if following is None else following["soonest"]
        return None if soonest is None else max(0.0, soonest - now)

    def withdraw_all(self, sandbox: SandboxKey) -> None:
        """End every hold of a sandbox that is gone."""
        for approval in self._of(sandbox):
            approval.state = WITHDRAWN
            self._store(approval)

    def _of(self, sandbox: SandboxKey) -> Iterable[Approval]:
        rows = self._database.rows(
            "SELECT document FROM approvals WHERE namespace = ? AND sandbox = ? AND state = ?",
            (*sandbox, PENDING),
        )
        return [Approval.FromString(row["document"]) for row in rows]

    def _pending(self, id_or_prefix: str) -> Approval:
        exact = self._find(id_or_prefix)
        if exact is not None:
            if exact.state != PENDING:
                state = governance_pb2.ApprovalState.Name(exact.state).removeprefix("APPROVAL_STATE_").lower()
                raise FailedPreconditionError("approval_closed", f"approval {exact.id} is {state}")
            return exact
        if len(id_or_prefix) < _SHORTEST_PREFIX or not id_or_prefix.isalnum():
            raise NotFoundError(
                "approval_not_found", f"give at least {_SHORTEST_PREFIX} characters of the id"
            )
        # Among all, also the closed: what was seen may be withdrawn and replaced before the word is given.
        rows = self._database.rows(
            "SELECT document FROM approvals WHERE lower(id) GLOB ?", (f"{id_or_prefix.lower()}*",)
        )
        fitting = [Approval.FromString(row["document"]) for row in rows]
        pending = [item for item in fitting if item.state == PENDING]
        if not pending:
            raise NotFoundError("approval_not_found", f"nothing pending fits {id_or_prefix[:32]!r}")
        if len(fitting) > 1:
            raise NotFoundError(
                "approval_not_found", f"several approvals fit {id_or_prefix[:32]!r}; give more of the id"
            )
        return pending[0]

    def _find(self, approval_id: str) -> Approval | None:
        row = self._database.row("SELECT document FROM approvals WHERE id = ?", (approval_id,))
        return None if row is None else Approval.FromString(row["document"])

    def _store(self, approval: Approval) -> None:
        closed_at = None if approval.state == PENDING else self._now().timestamp()
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO approvals"
                " (id, namespace, sandbox, state, expires_at, closed_at, document)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    approval.id,
                    approval.sandbox.namespace,
                    approval.sandbox.name,
                    approval.state,
                    approval.expires_at.ToDatetime(UTC).timestamp(),
                    closed_at,
                    approval.SerializeToString(),
                ),
            )
        for listener in list(self._listeners):
            listener(approval)


def _check_owner(approval: Approval, sandbox: SandboxKey) -> None:
    if (approval.sandbox.namespace, approval.sandbox.name) != sandbox:
        raise PermissionDeniedError("not_own_sandbox", "this approval belongs to another sandbox")
