"""The one interface of every gate."""

from typing import Protocol

from kars_router.pipeline.call import Call
from kars_router.pipeline.verdicts import Outcome, Verdict


class Gate(Protocol):
    """One control on the path.

    `admit` is asked once, in path order. `settle` is told the end of every call
    for which `admit` was begun, in reverse order, even when `admit` raised or
    was cancelled; it must not wait and must be safe to call in that state.
    """

    @property
    def name(self) -> str:
        """Stable name, as records and metrics show it."""

    async def admit(self, call: Call) -> Verdict:
        """Judge the call. Raising is a denial."""

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Learn how the call ended."""
