"""Counters behind rate-limit rules and tool limits of one door.

Keyed by rule and tool names that policy lists, bounded in number, on a
monotonic clock. A policy swap keeps them: changing a policy refills nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kars_router.limits.bucket import TokenBucket

# Tool names come from a model when policy says `*`. Beyond this many only full buckets are forgotten, which
# remember nothing; while none is full, no further name has room.
MAX_BUCKETS = 4096
_NO_ROOM_S = 1.0


@dataclass(slots=True)
class _Window:
    started: float
    used: int = 0


class RateState:
    """Windows by rule (its name and length: names may repeat) and buckets by tool name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, float], _Window] = {}
        self._buckets: dict[str, TokenBucket] = {}

    def window_wait(self, rule: str, max_calls: int, window_s: float) -> float | None:
        """Return the seconds to wait before one more call fits, or None when it fits now."""
        now = self._clock()
        window = self._windows.get((rule, window_s))
        if window is None or now - window.started >= window_s or window.used < max_calls:
            return None
        return window.started + window_s - now

    def charge_window(self, rule: str, window_s: float) -> None:
        """Count one call; opens a new fixed window when the last one is over."""
        now = self._clock()
        window = self._windows.get((rule, window_s))
        if window is None or now - window.started >= window_s:
            window = self._windows[rule, window_s] = _Window(started=now)
        window.used += 1

    def bucket_wait(self, tool: str, rate: float, burst: int) -> float | None:
        """Return the seconds until the tool's bucket holds a token, or None when it does now."""
        bucket = self._buckets.get(tool)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets = {name: kept for name, kept in self._buckets.items() if not kept.full}
            if len(self._buckets) >= MAX_BUCKETS:
                return _NO_ROOM_S
            bucket = self._buckets[tool] = TokenBucket(rate, burst, self._clock)
        bucket.resize(rate, burst)
        return bucket.wait_s()

    def charge_bucket(self, tool: str) -> None:
        """Take one token from the tool's bucket."""
        bucket = self._buckets.get(tool)
        if bucket is not None:
            bucket.take()
