"""Decisions that are turned to something else than what was shown."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kars.governance.v1 import governance_pb2
from kars_common.errors import FailedPreconditionError, KarsError, NotFoundError, PermissionDeniedError
from kars_common.spiffe import SpiffeId
from kars_controller.approvals import ApprovalRegistry
from kars_controller.approvals.registry import DENIED, EXPIRED, GRANTED, PENDING, WITHDRAWN
from kars_controller.platforms.base import SandboxKey
from kars_controller.storage import Database

MINE, OTHERS = SandboxKey("team", "mine"), SandboxKey("team", "others")
ALICE, BOB = (SpiffeId.operator("kars.local", name) for name in ("alice", "bob"))


class Clock:
    """A clock that tests turn."""

    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> ApprovalRegistry:
    """An empty registry."""
    return ApprovalRegistry(Database(tmp_path / "r.db"), clock)


def hold(clock: Clock, number: int, *, action: str = "tool:a", needed: int = 1) -> governance_pb2.Approval:
    """A hold; neighbours share 25 characters of their ids."""
    approval = governance_pb2.Approval(id=f"{'01a20a6b78c4' + '0' * 13}{number}", action=action)
    approval.min_approvals = needed
    approval.expires_at.FromDatetime(clock() + timedelta(minutes=5))
    return approval


@pytest.mark.parametrize("end", [WITHDRAWN, EXPIRED])
def test_a_prefix_is_not_turned_to_the_hold_that_replaced_the_one_shown(
    registry: ApprovalRegistry, clock: Clock, end: "governance_pb2.ApprovalState.ValueType"
) -> None:
    shown = registry.publish(MINE, hold(clock, 1))
    registry.close(MINE, shown.id, end)
    replaced = registry.publish(MINE, hold(clock, 2, action="tool:evil"))
    with pytest.raises(NotFoundError):
        registry.decide(shown.id[:12], ALICE, grant=True, note="")
    with pytest.raises(FailedPreconditionError):
        registry.decide(shown.id, ALICE, grant=True, note="")
    assert [item.state for item in registry.list_newest()] == [PENDING]
    assert registry.decide(replaced.id, ALICE, grant=True, note="").state == GRANTED


def test_wild_cards_are_no_prefix(registry: ApprovalRegistry, clock: Clock) -> None:
    registry.publish(MINE, hold(clock, 1))
    for prefix in ("*", "??????", "[0-9a-f]*", "%%%%%%", "______", "", "01a20", "' OR 1=1 --"):
        with pytest.raises(NotFoundError):
            registry.decide(prefix, ALICE, grant=True, note="")
    assert registry.decide("01A20A6B", ALICE, grant=True, note="").state == GRANTED


def test_a_hold_cannot_change_its_action_after_it_was_published(
    registry: ApprovalRegistry, clock: Clock
) -> None:
    shown = registry.publish(MINE, hold(clock, 1, needed=2))
    registry.decide(shown.id, ALICE, grant=True, note="")
    again = registry.publish(MINE, hold(clock, 1, action="tool:evil", needed=1))
    assert (again.action, again.min_approvals, again.state) == ("tool:a", 2, PENDING)
    assert list(again.granted_by) == [str(ALICE)]


def test_a_router_grants_itself_nothing(registry: ApprovalRegistry, clock: Clock) -> None:
    forged = hold(clock, 1, needed=2)
    forged.state, forged.decided_by = GRANTED, str(ALICE)
    forged.granted_by.extend([str(ALICE), str(BOB)])
    published = registry.publish(MINE, forged)
    assert (published.state, list(published.granted_by), published.decided_by) == (PENDING, [], "")
    for state in (GRANTED, DENIED, PENDING, 0, 99):
        with pytest.raises(KarsError):
            registry.close(MINE, published.id, state)  # type: ignore[arg-type]  # a hostile value


def test_one_sandbox_touches_nothing_of_anothers(registry: ApprovalRegistry, clock: Clock) -> None:
    theirs = registry.publish(OTHERS, hold(clock, 1))
    with pytest.raises(PermissionDeniedError):
        registry.publish(MINE, hold(clock, 1))
    with pytest.raises(PermissionDeniedError):
        registry.close(MINE, theirs.id, WITHDRAWN)
    forged = hold(clock, 2)
    forged.sandbox.namespace, forged.sandbox.name = OTHERS
    published = registry.publish(MINE, forged)
    assert (published.sandbox.namespace, published.sandbox.name) == MINE


def test_one_person_is_one_approver_and_what_expired_stays_so(
    registry: ApprovalRegistry, clock: Clock
) -> None:
    two = registry.publish(MINE, hold(clock, 1, needed=2))
    registry.decide(two.id, ALICE, grant=True, note="")
    with pytest.raises(FailedPreconditionError):
        registry.decide(two.id, ALICE, grant=True, note="")
    clock.now += timedelta(minutes=6)
    with pytest.raises(KarsError):
        registry.decide(two.id, BOB, grant=True, note="")
    found = registry.get(two.id)
    assert found is not None
    assert found.state == EXPIRED
    clock.now -= timedelta(minutes=6)  # a clock that is set back revives nothing
    with pytest.raises(FailedPreconditionError):
        registry.decide(two.id, BOB, grant=True, note="")
