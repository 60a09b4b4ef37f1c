"""What an enforcement point may publish as a hold; everything that only operators may say is dropped."""

import re
from datetime import UTC, datetime, timedelta

from kars.governance.v1 import governance_pb2
from kars_common.errors import InvalidInputError, clean_text

from kars_controller.platforms.base import SandboxKey
from kars_controller.profiles.parsing import MAX_APPROVERS

_ID = re.compile(r"[0-9A-Za-z]{26}")

_MAX_ACTION_CHARS = 256
_MAX_DETAIL_BYTES = 4096
_LONGEST = timedelta(hours=24)


def checked(approval: governance_pb2.Approval, sandbox: SandboxKey, now: datetime) -> governance_pb2.Approval:
    """Return a pending approval with only what its publisher may say.

    Raises:
        InvalidInputError: `approval_invalid`.
    """
    if not _ID.fullmatch(approval.id):
        raise _invalid("id must be 26 letters and digits")
    if not approval.action:
        raise _invalid("action must not be empty")
    if len(approval.detail.encode()) > _MAX_DETAIL_BYTES:
        raise _invalid(f"detail has more than {_MAX_DETAIL_BYTES} bytes")
    if not 0 <= approval.min_approvals <= MAX_APPROVERS:
        raise _invalid(f"min_approvals must be at most {MAX_APPROVERS}")
    expires_at = approval.expires_at.ToDatetime(UTC)
    if not now < expires_at <= now + _LONGEST:
        raise _invalid("expires_at must be within the next 24 hours")
    fresh = governance_pb2.Approval(
        id=approval.id,
        action=clean_text(approval.action, _MAX_ACTION_CHARS),
        detail=approval.detail,
        rule=clean_text(approval.rule, _MAX_ACTION_CHARS),
        state=governance_pb2.APPROVAL_STATE_PENDING,
        min_approvals=max(1, approval.min_approvals),
        call_id=clean_text(approval.call_id, 64),
        expires_at=approval.expires_at,
    )
    fresh.sandbox.namespace, fresh.sandbox.name = sandbox
    fresh.created_at.FromDatetime(now)
    return fresh


def _invalid(what: str) -> InvalidInputError:
    return InvalidInputError("approval_invalid", f"approval: {what}")
