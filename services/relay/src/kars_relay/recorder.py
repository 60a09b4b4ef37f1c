"""What the audit log says about the mesh: decisions and changes, never content.

A refusal that a peer can repeat without limit is written once a minute for each (kind, peer, target), with a
count of those left out, so that it cannot fill the disk. Values are names, reason codes and numbers.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from kars_common.errors import clean_text

_QUIET_S = 60.0
_REMEMBERED = 10_000
_MAX_CHARS = 512


class Log(Protocol):
    """The part of the audit log that writing needs (`kars_common.audit.AuditLog`)."""

    def append(self, type: str, fields: Mapping[str, object]) -> int:  # noqa: A002 - the log's own name for it
        """Write one record; returns its sequence number."""

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        """Wait until the record is on disk."""


class Recorder:
    """Writes the relay's records."""

    def __init__(self, log: Log, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock_s = clock_s
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}

    def event(self, kind: str, **fields: str | int | bool) -> int:
        """Write a change; each is a record."""
        return self._log.append(kind, {name: _clean(value) for name, value in fields.items()})

    async def durable_event(self, kind: str, **fields: str | int | bool) -> None:
        """Write a change and wait until it is on disk."""
        await self._log.durable(self.event(kind, **fields))

    def refused(self, kind: str, reason: str, peer: str, target: str = "", count: int = 1) -> None:
        """Write a refusal, or count it towards the next record of its like."""
        key = (kind, reason, peer, target)
        now_s = self._clock_s()
        told_s, left_out = self._told.get(key, (-_QUIET_S, 0))
        if now_s - told_s < _QUIET_S:
            self._told[key] = (told_s, left_out + count)
            return
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[key] = (now_s, 0)
        fields: dict[str, str | int | bool] = {"reason": reason, "peer": peer, "count": count}
        if target:
            fields["target"] = target
        if left_out:
            fields["left_out"] = left_out
        self.event(kind, **fields)


def _clean(value: str | int | bool) -> str | int | bool:
    return clean_text(value, _MAX_CHARS) if isinstance(value, str) else value
