"""Token buckets over an injected monotonic clock: envelopes and bytes of one sender."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from kars_relay.policy import Quota


class Bucket:
    """Holds up to `burst` tokens and gains `rate` a second; starts full."""

    __slots__ = ("_level", "_updated_s", "burst", "rate")

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._updated_s = now_s

    def resize(self, rate: float, burst: float) -> None:
        """Change rate and size; what is held stays, cut to the new size."""
        self.rate, self.burst = rate, burst
        self._level = min(self._level, burst)

    def level(self, now_s: float) -> float:
        """Return what is there now."""
        self._level = min(self.burst, self._level + (now_s - self._updated_s) * self.rate)
        self._updated_s = now_s
        return self._level

    def take(self, tokens: float) -> None:
        """Take tokens whose presence `level` has shown."""
        self._level -= tokens

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return how long until so many tokens are there (at most a bucket full)."""
        return max(0.0, (min(tokens, self.burst) - self.level(now_s)) / self.rate)


class SenderQuota:
    """What one sender may hand in now. Survives reconnects: it belongs to the peer, not to a connection."""

    def __init__(self, quota: Quota, clock_s: Callable[[], float]) -> None:
        now_s = clock_s()
        self._clock_s = clock_s
        self._envelopes = Bucket(quota.send_rate, quota.send_burst, now_s)
        self._bytes = Bucket(quota.send_bytes_rate, quota.send_bytes_burst, now_s)

    def resize(self, quota: Quota) -> None:
        """Follow a change of policy."""
        self._envelopes.resize(quota.send_rate, quota.send_burst)
        self._bytes.resize(quota.send_bytes_rate, quota.send_bytes_burst)

    def take(self, ends: Sequence[int]) -> int:
        """Take as many of a run's envelopes as fit, from the front, and return how many.

        Args:
            ends: where each envelope ends in the run's bytes.
        """
        now_s = self._clock_s()
        envelopes, room = self._envelopes.level(now_s), self._bytes.level(now_s)
        count = len(ends)
        if count > envelopes or ends[-1] > room:
            count = min(int(envelopes), bisect_right(ends, room))
            if count == 0:
                return 0
        self._envelopes.take(count)
        self._bytes.take(ends[count - 1])
        return count

    def retry_after_ms(self, size: int) -> int:
        """Return after how long one envelope of so many bytes may pass."""
        now_s = self._clock_s()
        return max(
            1, math.ceil(1000 * max(self._envelopes.wait_s(1, now_s), self._bytes.wait_s(size, now_s)))
        )
