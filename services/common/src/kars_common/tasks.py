"""Helpers for long-running tasks: back-off with jitter between attempts.

Knows nothing of what is attempted. Services list their tasks in one `asyncio.TaskGroup` themselves.
"""

import asyncio
import random
from dataclasses import dataclass, field

_RANDOM = random.SystemRandom()


@dataclass(kw_only=True)
class Backoff:
    """Exponential back-off with full jitter, in seconds; one instance a thing that is retried."""

    first_s: float = 0.2
    most_s: float = 30.0
    _attempts: int = field(default=0, init=False)

    def next_s(self) -> float:
        """Return how long to wait now; each call doubles the range until `reset`."""
        ceiling = min(self.most_s, self.first_s * 2 ** min(self._attempts, 30))
        self._attempts += 1
        return _RANDOM.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """Begin again after a success."""
        self._attempts = 0

    async def wait(self) -> None:
        """Sleep for `next_s`."""
        await asyncio.sleep(self.next_s())


def jittered(seconds: float, share: float = 0.1) -> float:
    """Return `seconds` moved at random by at most `share` of it, so that a fleet does not act at once."""
    return seconds * (1 + _RANDOM.uniform(-share, share))
