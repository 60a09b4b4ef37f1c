"""The token ledger of one sandbox: a UTC day and a UTC month, reserved and used.

Pure bookkeeping. `reserve` before a call, `settle` after; what is reserved
counts as used until then, so parallel calls cannot overshoot. Time moves only
forward: a clock that is set back opens no old or fresh window.
"""

import datetime
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def utc_today() -> str:
    """Return today's UTC date, `YYYY-MM-DD`."""
    return _date(int(time.time() // 86_400))


@functools.lru_cache(maxsize=4)
def _date(days: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=days)).isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLimits:
    """Tokens; 0 means no limit."""

    per_request: int = 0
    day: int = 0
    month: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdrawn:
    """Why a reservation was refused."""

    window: str
    used: int
    limit: int
    resets_at: datetime.datetime


class Ledger:
    """Used and reserved tokens of one sandbox."""

    def __init__(self, today: Callable[[], str] = utc_today) -> None:
        self._today = today
        self._day = ""
        self.used_day = 0
        self.used_month = 0
        self.reserved_day = 0
        self.reserved_month = 0
        self.refused_calls = 0
        self._open: dict[str, tuple[int, str]] = {}

    def day(self) -> str:
        """Return the day that counts now, rolling the windows over when a new one has begun."""
        self._roll(self._today())
        return self._day

    def reserve(self, call_id: str, tokens: int, limits: BudgetLimits) -> Overdrawn | None:
        """Hold tokens for a call; returns why not when a window has no room for them."""
        day = self.day()
        if limits.day and self.used_day + self.reserved_day + tokens > limits.day:
            return Overdrawn(
                window="daily",
                used=self.used_day + self.reserved_day,
                limit=limits.day,
                resets_at=_day_end(day),
            )
        if limits.month and self.used_month + self.reserved_month + tokens > limits.month:
            used = self.used_month + self.reserved_month
            return Overdrawn(window="monthly", used=used, limit=limits.month, resets_at=_month_end(day))
        self.hold(call_id, tokens, day)
        return None

    def hold(self, call_id: str, tokens: int, day: str) -> None:
        """Hold tokens without asking (replay of what was admitted); a known call is held once."""
        if call_id in self._open:
            return
        self._roll(day)
        self._open[call_id] = (tokens, day)
        if day == self._day:
            self.reserved_day += tokens
        if day[:7] == self._day[:7]:
            self.reserved_month += tokens

    def settle(self, call_id: str, charged: int) -> None:
        """Replace a reservation by what the call cost; an unknown or settled call is left alone."""
        held = self._open.pop(call_id, None)
        if held is None:
            return
        tokens, day = held
        if day == self._day:
            self.reserved_day -= tokens
            self.used_day += charged
        if day[:7] == self._day[:7]:
            self.reserved_month -= tokens
            self.used_month += charged

    def refuse(self) -> None:
        """Count a call that was refused for budget."""
        self.day()
        self.refused_calls += 1

    def refused_on(self, day: str) -> None:
        """Count a refusal that was recorded on a day (replay)."""
        self._roll(day)
        if day[:7] == self._day[:7]:
            self.refused_calls += 1

    def open_calls(self) -> Mapping[str, int]:
        """Return reserved tokens by call."""
        return {call_id: tokens for call_id, (tokens, _) in self._open.items()}

    def resets(self) -> tuple[datetime.datetime, datetime.datetime]:
        """Return when the day and the month end."""
        day = self.day()
        return _day_end(day), _month_end(day)

    def snapshot(self) -> dict[str, Any]:
        """Return everything that `restore` needs, as JSON."""
        return {
            "day": self._day,
            "used_day": self.used_day,
            "used_month": self.used_month,
            "refused": self.refused_calls,
            "open": {call_id: [tokens, day] for call_id, (tokens, day) in self._open.items()},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over a snapshot.

        Raises:
            KeyError, TypeError, ValueError: the snapshot is not one of `snapshot`.
        """
        day = str(saved["day"])
        if day:
            datetime.date.fromisoformat(day)
        self._day = day
        self.used_day, self.used_month = int(saved["used_day"]), int(saved["used_month"])
        self.refused_calls = int(saved["refused"])
        self.reserved_day = self.reserved_month = 0
        self._open = {}
        for call_id, (tokens, held_day) in saved["open"].items():
            self._open[str(call_id)] = (int(tokens), str(held_day))
        self._recount()

    def _roll(self, day: str) -> None:
        if day <= self._day:
            return
        if day[:7] != self._day[:7]:
            self.used_month = 0
            self.refused_calls = 0
        self._day = day
        self.used_day = 0
        self._recount()

    def _recount(self) -> None:
        self.reserved_day = sum(tokens for tokens, day in self._open.values() if day == self._day)
        self.reserved_month = sum(tokens for tokens, day in self._open.values() if day[:7] == self._day[:7])


def _day_end(day: str) -> datetime.datetime:
    date = datetime.date.fromisoformat(day) + datetime.timedelta(days=1)
    return datetime.datetime(date.year, date.month, date.day, tzinfo=datetime.UTC)


def _month_end(day: str) -> datetime.datetime:
    date = datetime.date.fromisoformat(day)
    year, month = (date.year + 1, 1) if date.month == 12 else (date.year, date.month + 1)
    return datetime.datetime(year, month, 1, tzinfo=datetime.UTC)
