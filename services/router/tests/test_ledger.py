"""The ledger as a state machine: never overdrawn, never refunded, the same after replay from any snapshot."""

import datetime
from typing import Any

import orjson
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kars_router.budget.journal import LedgerJournal
from kars_router.budget.ledger import BudgetLimits, Ledger

LIMITS = BudgetLimits(day=1000, month=2500)


class Today:
    def __init__(self) -> None:
        self.date = datetime.date(2026, 1, 30)

    def __call__(self) -> str:
        return self.date.isoformat()


class LedgerMachine(RuleBasedStateMachine):
    """Reserves, settles, time and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.today = Today()
        self.ledger = Ledger(self.today)
        self.records: list[dict[str, Any]] = []
        self.open: dict[str, tuple[int, str]] = {}
        self.spent: dict[str, int] = {}
        self.snapshot: tuple[int, bytes] = (0, orjson.dumps(Ledger().snapshot()))
        self.count = 0

    @rule(tokens=st.integers(0, 600))
    def reserve(self, tokens: int) -> None:
        self.count += 1
        call = f"c{self.count}"
        before = self._held(self.ledger.day())
        overdrawn = self.ledger.reserve(call, tokens, LIMITS)
        day = self.ledger.day()
        fits = before + tokens <= LIMITS.day and self._month(day) + tokens <= LIMITS.month
        assert (overdrawn is None) is fits
        if overdrawn is None:
            self.open[call] = (tokens, day)
            self.records.append(
                {"type": "call.admitted", "sandbox": "s", "call": call, "reserved": tokens, "day": day}
            )

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.open)))
        tokens, day = self.open.pop(call)
        charged = data.draw(st.integers(0, tokens))
        self.ledger.settle(call, charged)
        self.ledger.settle(call, 10**9)  # a second settlement changes nothing
        self.spent[day] = self.spent.get(day, 0) + charged
        self.records.append({"type": "call.settled", "sandbox": "s", "call": call, "charged": charged})

    @rule(days=st.integers(-3, 3))
    def time_passes(self, days: int) -> None:
        self.today.date += datetime.timedelta(days=days)

    @rule()
    def snapshots(self) -> None:
        self.snapshot = (len(self.records), orjson.dumps(self.ledger.snapshot()))

    @rule()
    def is_killed_and_replayed(self) -> None:
        ledger = Ledger(self.today)
        start, saved = self.snapshot
        ledger.restore(orjson.loads(saved))
        for record in self.records[start:]:
            if record["type"] == "call.admitted":
                ledger.hold(record["call"], record["reserved"], record["day"])
            else:
                ledger.settle(record["call"], record["charged"])
        for call, reserved in ledger.open_calls().items():
            assert self.open.pop(call)[0] == reserved
            ledger.settle(call, reserved)
            self.records.append({"type": "call.settled", "sandbox": "s", "call": call, "charged": reserved})
            day = next(item["day"] for item in self.records if item["call"] == call)
            self.spent[day] = self.spent.get(day, 0) + reserved
        assert not self.open
        self.ledger = ledger

    @invariant()
    def windows_hold_what_was_reserved_and_spent(self) -> None:
        day = self.ledger.day()
        assert self.ledger.used_day == self.spent.get(day, 0)
        assert self.ledger.used_day + self.ledger.reserved_day == self._held(day) <= LIMITS.day
        assert self.ledger.used_month + self.ledger.reserved_month == self._month(day) <= LIMITS.month

    def _held(self, day: str) -> int:
        return self.spent.get(day, 0) + sum(tokens for tokens, held in self.open.values() if held == day)

    def _month(self, day: str) -> int:
        spent = sum(tokens for spent_on, tokens in self.spent.items() if spent_on[:7] == day[:7])
        return spent + sum(tokens for tokens, held in self.open.values() if held[:7] == day[:7])


TestLedgerMachine = LedgerMachine.TestCase


def test_windows_end_at_utc_midnight_and_month_end() -> None:
    today = Today()
    today.date = datetime.date(2026, 12, 31)
    day, month = Ledger(today).resets()
    assert day == month == datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)


def test_parallel_reservations_cannot_overshoot() -> None:
    ledger = Ledger()
    assert ledger.reserve("a", 600, LIMITS) is None
    overdrawn = ledger.reserve("b", 600, LIMITS)
    assert overdrawn is not None
    assert (overdrawn.window, overdrawn.used, overdrawn.limit) == ("daily", 600, 1000)
    ledger.settle("a", 10)
    assert ledger.reserve("b", 600, LIMITS) is None


class MemoryLog:
    """An audit log in memory."""

    def __init__(self, records: list[dict[str, Any]], first: int = 0) -> None:
        self.items = records
        self.first_seq = first

    @property
    def size(self) -> int:
        return len(self.items)

    def records(self, start_seq: int = 0) -> list[dict[str, Any]]:
        return list(self.items[start_seq:])

    def append(self, type: str, fields: Any, *, staged: bool = False) -> int:  # noqa: A002 - the log's own name
        self.items.append({"type": type, **fields})
        return len(self.items) - 1

    async def durable(self, seq: int) -> None: ...


@pytest.mark.parametrize("snapshot_after", [None, 1, 2, 3])
async def test_refusals_and_denied_reservations_survive(tmp_path: Any, snapshot_after: int | None) -> None:
    day = Ledger().day()
    records: list[dict[str, Any]] = [
        {"type": "call.admitted", "sandbox": "s", "call": "a", "reserved": 50, "day": day},
        {
            "type": "call.denied",
            "sandbox": "s",
            "call": "b",
            "reason": "budget_exceeded",
            "time": f"{day}T00:00:00Z",
        },
        {"type": "call.settled", "sandbox": "other", "call": "a", "charged": 1},
    ]
    if snapshot_after is not None:
        early = Ledger()
        await_log = MemoryLog(records[:snapshot_after])
        first = LedgerJournal(tmp_path, await_log, {"s": early})
        first._directory.mkdir(exist_ok=True)
        for record in records[:snapshot_after]:
            first._replay(record)
        await first.save()
    ledger = Ledger()
    log = MemoryLog(records)
    assert LedgerJournal(tmp_path, log, {"s": ledger}).recover() == 1
    assert (ledger.used_day, ledger.refused_calls) == (50, 1)
    assert log.items[-1]["ending"] == "abandoned"
