"""How long to wait before a crashed container is started again. Knows no clock and no container."""

FIRST_S = 1.0
LONGEST_S = 300.0
STABLE_S = 60.0
"""A run that lasted so long was no crash loop: start from the beginning."""


class Backoff:
    """Doubles from FIRST_S to LONGEST_S; forgets after a stable run."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after_run(self, lasted_s: float) -> float:
        """Return the delay before the next start, after a run that ended."""
        if lasted_s >= STABLE_S:
            self.reset()
        delay, self._next_s = self._next_s, min(self._next_s * 2, LONGEST_S)
        return delay

    def reset(self) -> None:
        """Start from the beginning."""
        self._next_s = FIRST_S
