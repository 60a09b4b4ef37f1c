"""The walk: every governed call, whatever its kind, goes this way and no other.

Forward through the entry gates; then the admission record, so that a killed
process still knows what it let through; then dispatch and the guards of the
answer. At the end, denied or not: `settle` in reverse order, one record, and
nothing final is released before that record is durable.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from kars_router.pipeline.call import Call, CallerGoneError
from kars_router.pipeline.gates import Gate
from kars_router.pipeline.verdicts import DecidedBy, Deny, Ending, Hold, Outcome, Verdict, internal_error

_log = logging.getLogger(__name__)
# From so many calls in flight on, sharing a sync is worth more than its millisecond.
_CROWDED = 4


class Recorder(Protocol):
    """Writes the records of calls; see `audit.recorder`."""

    def admitted(self, call: Call) -> int:
        """Write that the call passed the entry gates."""

    def ended(self, call: Call, outcome: Outcome, *, awaited: bool) -> int:
        """Write how the call ended; `awaited` says that `durable` will be asked for it."""

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        """Wait until a record is on disk; a patient caller lets others share the sync."""


class Holds(Protocol):
    """Waits for people; see `approvals.holds`."""

    async def wait(self, call: Call, hold: Hold) -> Verdict:
        """Park the call until it is granted, denied or expired."""


class Path:
    """The gates in order, and the walk through them."""

    def __init__(
        self,
        *,
        entry: Sequence[Gate],
        after: Sequence[Gate],
        recorder: Recorder,
        holds: Holds,
        on_end: Callable[[Call, Outcome, float], None] = lambda _call, _outcome, _seconds: None,
    ) -> None:
        """Take the gates before and after the admission record, and who is told of every end (metrics)."""
        self._entry = tuple(entry)
        self._after = tuple(after)
        self._recorder = recorder
        self._holds = holds
        self._on_end = on_end
        self._loop: asyncio.AbstractEventLoop | None = None

    def _later(self, told: Callable[..., None], *arguments: object) -> None:
        if self._loop is None:  # asking for it costs a system call each time (Python 3.11)
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(told, *arguments)

    async def run(self, call: Call) -> Outcome:
        """Walk one call to its end; when this returns, its record is durable.

        Returns:
            How it ended. The caller may release the rest of the answer only for `COMPLETED`.

        Raises:
            asyncio.CancelledError: the caller hung up or the router stops; the call was settled and recorded.
            CallerGoneError: the caller does not take its answer; as above.
        """
        begun: list[Gate] = []
        try:
            outcome = await self._walk(call, begun)
        except (asyncio.CancelledError, CallerGoneError):
            self._conclude(call, begun, Outcome(ending=Ending.CANCELLED, status=499), awaited=False)
            raise
        seq, outcome = self._conclude(call, begun, outcome, awaited=True)
        try:
            if seq is not None:
                crowded = call.door.slots.in_flight >= _CROWDED
                await self._recorder.durable(seq, patient=crowded)
        except Exception as exc:  # noqa: BLE001 - the boundary: without its record nothing is released
            _log.error("the record of a call could not be made durable", extra={"error": type(exc).__name__})
            return _unrecorded()
        return outcome

    async def _walk(self, call: Call, begun: list[Gate]) -> Outcome:
        denial = await self._pass(self._entry, call, begun)
        if denial is not None:
            return _denied(denial)
        try:
            call.admitted_seq = self._recorder.admitted(call)
        except Exception as exc:  # noqa: BLE001 - the boundary: what cannot be recorded does not happen
            _log.error("a call could not be recorded", extra={"error": type(exc).__name__})
            return _unrecorded()
        denial = await self._pass(self._after, call, begun)
        return Outcome(ending=Ending.COMPLETED) if denial is None else _denied(denial)

    async def _pass(self, gates: Sequence[Gate], call: Call, begun: list[Gate]) -> Deny | None:
        """Ask gates in order; return the first denial."""
        for gate in gates:
            begun.append(gate)
            try:
                verdict = await gate.admit(call)
                if isinstance(verdict, Hold):
                    verdict = await self._holds.wait(call, verdict)
            except CallerGoneError:
                raise
            except Exception as exc:  # noqa: BLE001 - the boundary: a gate that raises is a denial
                _log.error(
                    "a gate raised", extra={"gate": gate.name, "error": _describe(exc), "call": call.id}
                )
                return internal_error().at(gate.name)
            if isinstance(verdict, Deny):
                return verdict.at(gate.name)
        return None

    def _conclude(
        self, call: Call, begun: list[Gate], outcome: Outcome, *, awaited: bool
    ) -> tuple[int | None, Outcome]:
        for gate in reversed(begun):
            try:
                gate.settle(call, outcome)
            except Exception as exc:  # noqa: BLE001 - the boundary: one gate's failure must not skip the others
                _log.error("a gate failed to settle", extra={"gate": gate.name, "error": _describe(exc)})
        # After this turn of the loop, that is while the disk is at work: counting delays nobody.
        self._later(self._on_end, call, outcome, time.monotonic() - call.started)
        try:
            return self._recorder.ended(call, outcome, awaited=awaited), outcome
        except Exception as exc:  # noqa: BLE001 - the boundary: as above
            _log.error("the end of a call could not be recorded", extra={"error": type(exc).__name__})
            return None, _unrecorded()


def _denied(denial: Deny) -> Outcome:
    failed = denial.decided_by is DecidedBy.PROVIDER
    return Outcome(ending=Ending.FAILED if failed else Ending.DENIED, status=denial.status, denial=denial)


def _unrecorded() -> Outcome:
    denial = Deny(
        status=503,
        error_type="internal_error",
        code="audit_unavailable",
        message="the audit log cannot be written; nothing is released without its record",
        gate="record",
    )
    return Outcome(ending=Ending.DENIED, status=503, denial=denial)


def _describe(exc: Exception) -> str:
    """Name an exception by type and place: its text may hold prompt or secret."""
    frames = traceback.extract_tb(exc.__traceback__)
    place = f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
    return type(exc).__name__ + place
