"""Records of the gateway: every call, every refusal, every task, every push.

A call's record is durable before its answer is released. Refusals of callers that proved nothing are thinned,
with a count of those left out, so that a stranger cannot fill the disk.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from kars_a2a_gateway.callers.principals import Principal
from kars_a2a_gateway.errors import A2AError
from kars_a2a_gateway.push.outbox import Push
from kars_a2a_gateway.tasks.owners import Owner

_THINNED_PER_S = 20.0
_THINNED_BURST = 200.0


class Log(Protocol):
    """The part of `kars_common.audit.AuditLog` that writing needs."""

    def append(self, type: str, fields: Mapping[str, object]) -> int:  # noqa: A002  # the log's own name
        """Write one record."""

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        """Wait until a record is on disk."""


class Recorder:
    """Writes the records."""

    def __init__(self, log: Log, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock_s = clock_s
        self._room = _THINNED_BURST
        self._filled_s = clock_s()
        self._left_out = 0

    def call(
        self, call_id: str, owner: Owner, principal: Principal, method: str, fields: Mapping[str, object]
    ) -> int:
        """Write that a call was let in; returns what `durable` waits for."""
        record = {
            "call": call_id,
            "agent": owner.agent,
            "principal": principal.id,
            "proof": principal.kind.value,
            "method": method,
        }
        return self._log.append("a2a.call", record | dict(fields))

    async def durable(self, seq: int) -> None:
        """Wait until a record is on disk; nothing is released before."""
        await self._log.durable(seq)

    def refused(
        self, agent: str, method: str, error: A2AError, principal: Principal | None, peer: str
    ) -> None:
        """Write that a request was refused."""
        if (principal is None or not principal.proven) and not self._take():
            self._left_out += 1
            return
        record: dict[str, object] = {
            "agent": agent[:200],
            "principal": principal.id if principal is not None else "",
            "method": method[:100],
            "reason": error.kind.reason.lower(),
            "why": error.metadata.get("why", ""),
            "message": error.message,
            "peer": peer,
        }
        if self._left_out:
            record["left_out"], self._left_out = self._left_out, 0
        self._log.append("a2a.refused", record)

    def task(self, what: str, owner: Owner, task_id: str, fields: Mapping[str, object]) -> int:
        """Write that a task was created, or ended."""
        record = {"agent": owner.agent, "principal": owner.principal, "task": task_id}
        return self._log.append(f"a2a.task_{what}", record | dict(fields))

    def push(self, what: str, push: Push, fields: Mapping[str, object]) -> None:
        """Write what became of a push. Where it went stays out: URLs carry secrets."""
        record = {"agent": push.agent, "task": push.task_id, "config": push.config_id, "push": push.id}
        self._log.append(f"a2a.push_{what}", record | dict(fields))

    def event(self, what: str, fields: Mapping[str, object]) -> None:
        """Write something about the gateway itself."""
        self._log.append(f"a2a.{what}", fields)

    def _take(self) -> bool:
        now = self._clock_s()
        self._room = min(_THINNED_BURST, self._room + (now - self._filled_s) * _THINNED_PER_S)
        self._filled_s = now
        if self._room < 1:
            return False
        self._room -= 1
        return True
