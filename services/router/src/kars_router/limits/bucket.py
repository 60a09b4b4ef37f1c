"""A token bucket on an injected monotonic clock."""

import time
from collections.abc import Callable


class TokenBucket:
    """Holds up to `burst` tokens and gains `rate` a second; starts full."""

    __slots__ = ("_burst", "_clock", "_level", "_rate", "_updated")

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = float(burst)
        self._updated = clock()

    def resize(self, rate: float, burst: int) -> None:
        """Change rate and size; what is held stays, cut to the new size."""
        if rate != self._rate or burst != self._burst:
            self._refill()
            self._rate, self._burst = rate, burst
            self._level = min(self._level, float(burst))

    @property
    def full(self) -> bool:
        """True when nothing is missing: it remembers no call."""
        self._refill()
        return self._level >= self._burst

    def wait_s(self) -> float | None:
        """Return None when a token is there, else the seconds until one is."""
        self._refill()
        if self._level >= 1.0:
            return None
        return (1.0 - self._level) / self._rate if self._rate > 0 else 3600.0

    def take(self) -> float | None:
        """Take a token and return None, or leave it and return the seconds to wait."""
        wait_s = self.wait_s()
        if wait_s is None:
            self._level -= 1.0
        return wait_s

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(float(self._burst), self._level + (now - self._updated) * self._rate)
        self._updated = now
