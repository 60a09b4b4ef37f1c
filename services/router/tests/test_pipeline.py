"""The walk itself: order, reverse settlement, and gates that raise."""

import asyncio
from typing import Any

import pytest
from kars_router.pipeline.call import Call, CallerGoneError
from kars_router.pipeline.door import Door, DoorDefaults
from kars_router.pipeline.path import Path
from kars_router.pipeline.verdicts import ADMIT, Deny, Ending, Hold, Outcome, Verdict

DENIAL = Deny(status=403, error_type="t", code="no", message="m")


class Journal:
    """Everything that happened, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.fail_at = ""

    def _note(self, event: str) -> int:
        if event == self.fail_at:
            raise OSError("disk full: secret-canary")
        self.events.append(event)
        return len(self.events)

    def admitted(self, call: Call) -> int:
        return self._note("admitted")

    def ended(self, call: Call, outcome: Outcome, *, awaited: bool) -> int:
        return self._note(f"record:{outcome.ending.value}:{outcome.denial.gate if outcome.denial else ''}")

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        self._note("durable")

    async def wait(self, call: Call, hold: Hold) -> Verdict:
        self._note(f"held:{hold.rule}")
        return ADMIT if hold.rule == "grant" else DENIAL


class Step:
    """A gate that does as it is told."""

    def __init__(self, name: str, journal: Journal, does: Any = ADMIT) -> None:
        self.name = name
        self._journal = journal
        self._does = does

    async def admit(self, call: Call) -> Verdict:
        self._journal.events.append(f"admit:{self.name}")
        if isinstance(self._does, BaseException):
            raise self._does
        return self._does  # type: ignore[no-any-return]  # a verdict

    def settle(self, call: Call, outcome: Outcome) -> None:
        self._journal.events.append(f"settle:{self.name}")


class Silent:
    """A caller that is only there."""

    async def partial(self, objects: list[dict[str, Any]]) -> None: ...
    async def waiting(self, approval_id: str) -> None: ...
    def watch(self) -> None: ...


def a_call() -> Call:
    return Call(door=Door(namespace="n", name="s", defaults=DoorDefaults()), release=Silent(), trace_id="t")


def build(journal: Journal, **does: Any) -> Path:
    entry = [Step(name, journal, does.get(name, ADMIT)) for name in ("one", "two")]
    after = [Step(name, journal, does.get(name, ADMIT)) for name in ("three", "four")]
    return Path(entry=entry, after=after, recorder=journal, holds=journal)


async def test_gates_run_forward_settle_backward_and_the_record_is_durable_last() -> None:
    journal = Journal()
    outcome = await build(journal).run(a_call())
    assert outcome.ending is Ending.COMPLETED
    assert journal.events == [
        *("admit:one", "admit:two", "admitted", "admit:three", "admit:four"),
        *("settle:four", "settle:three", "settle:two", "settle:one"),
        *("record:completed:", "durable"),
    ]


@pytest.mark.parametrize("name", ["one", "two", "three", "four"])
@pytest.mark.parametrize("does", [DENIAL, RuntimeError("boom")], ids=["denies", "raises"])
async def test_a_gate_that_denies_or_raises_ends_the_walk_closed(name: str, does: object) -> None:
    journal = Journal()
    outcome = await build(journal, **{name: does}).run(a_call())
    assert outcome.ending is Ending.DENIED
    assert outcome.denial is not None
    assert (outcome.denial.gate, outcome.denial.code) == (name, "no" if does is DENIAL else "gate_failed")
    assert "boom" not in outcome.denial.message
    order = ["one", "two", "three", "four"]
    begun = order[: order.index(name) + 1]
    assert [event for event in journal.events if event.startswith("settle")] == [
        f"settle:{n}" for n in begun[::-1]
    ]
    assert journal.events[-2:] == [f"record:denied:{name}", "durable"]


@pytest.mark.parametrize("fail_at", ["admitted", "record:completed:", "durable"])
async def test_what_cannot_be_recorded_is_not_released(fail_at: str) -> None:
    journal = Journal()
    journal.fail_at = fail_at
    outcome = await build(journal).run(a_call())
    assert outcome.denial is not None
    assert (outcome.status, outcome.denial.code) == (503, "audit_unavailable")
    assert "secret-canary" not in outcome.denial.message
    if fail_at == "admitted":
        assert "admit:three" not in journal.events


async def test_a_hold_goes_on_when_granted_and_ends_when_denied() -> None:
    granted, denied = Journal(), Journal()
    hold = Hold(action="a", detail="", rule="grant")
    assert (await build(granted, two=hold).run(a_call())).ending is Ending.COMPLETED
    assert "held:grant" in granted.events
    outcome = await build(denied, two=Hold(action="a", detail="", rule="refuse")).run(a_call())
    assert outcome.denial is not None
    assert outcome.denial.gate == "two"
    assert "admitted" not in denied.events


@pytest.mark.parametrize("end", [asyncio.CancelledError(), CallerGoneError()], ids=["cancelled", "gone"])
async def test_a_caller_that_goes_away_is_settled_and_recorded(end: BaseException) -> None:
    journal = Journal()
    with pytest.raises(type(end)):
        await build(journal, three=end).run(a_call())
    assert journal.events[-4:] == ["settle:three", "settle:two", "settle:one", "record:cancelled:"]
