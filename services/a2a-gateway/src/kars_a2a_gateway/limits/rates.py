"""Token buckets by key, bounded in number: the stalest leaves first.

A bucket that was left long enough is full again, so forgetting it changes nothing; only then may it be
dropped. When more keys are live than fit, newcomers share one strict bucket instead of pushing others out.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_BUCKETS = 50_000


class Rates:
    """Buckets of one process."""

    def __init__(
        self, clock_s: Callable[[], float] = time.monotonic, max_buckets: int = _MAX_BUCKETS
    ) -> None:
        self._clock_s = clock_s
        self._max = max_buckets
        self._buckets: OrderedDict[str, tuple[float, float, float]] = OrderedDict()

    def take(self, key: str, rate_per_s: float, burst: float) -> float:
        """Take one token; returns 0, or the seconds until there is one."""
        now = self._clock_s()
        if key not in self._buckets and len(self._buckets) >= self._max and not self._drop_full(now):
            key = "everybody else"
        tokens, filled_s, _ = self._buckets.get(key, (burst, now, now))
        tokens = min(burst, tokens + (now - filled_s) * rate_per_s)
        wait_s = 0.0
        if tokens >= 1:
            tokens -= 1
        else:
            wait_s = (1 - tokens) / rate_per_s
        full_s = now + (burst - tokens) / rate_per_s
        self._buckets[key] = (tokens, now, full_s)
        self._buckets.move_to_end(key)
        return wait_s

    def _drop_full(self, now: float) -> bool:
        """Drop the stalest bucket if it is full again."""
        key, (_, _, full_s) = next(iter(self._buckets.items()))
        if full_s > now:
            return False
        del self._buckets[key]
        return True
