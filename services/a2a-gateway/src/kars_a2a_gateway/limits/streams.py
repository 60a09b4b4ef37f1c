"""How many streams are open: of one caller, and of the process."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from kars_a2a_gateway.errors import A2AError, Kind, unavailable
from kars_a2a_gateway.tasks.owners import Owner


class StreamSlots:
    """Counts open streams."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[Owner] = Counter()
        self.total = 0

    @contextmanager
    def hold(self, owner: Owner, most: int) -> Iterator[None]:
        """Hold one slot while inside.

        Raises:
            A2AError: QUOTA_EXCEEDED for the caller's own bound, UNAVAILABLE for the process's.
        """
        if self._open[owner] >= most:
            raise A2AError(
                Kind.QUOTA_EXCEEDED, f"at most {most} streams of one caller", headers=(("retry-after", "5"),)
            )
        if self.total >= self._most:
            raise unavailable("too many streams are open")
        self._open[owner] += 1
        self.total += 1
        try:
            yield
        finally:
            self.total -= 1
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]
