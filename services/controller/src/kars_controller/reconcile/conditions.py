"""Standard conditions, and the one rule about their time: it moves only when the status moves."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kars_controller.api_types.base import dig
from kars_controller.resources import Document, EventType, generation
from kars_controller.resources.timestamps import rfc3339

READY = "Ready"
PROGRESSING = "Progressing"
DEGRADED = "Degraded"

_MAX_MESSAGE_CHARS = 2048


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, without its time."""

    type: str
    status: bool
    reason: str
    message: str = ""

    @classmethod
    def true(cls, condition_type: str, reason: str, message: str = "") -> "Condition":
        """Return a condition that holds."""
        return cls(type=condition_type, status=True, reason=reason, message=message)

    @classmethod
    def false(cls, condition_type: str, reason: str, message: str = "") -> "Condition":
        """Return a condition that does not hold."""
        return cls(type=condition_type, status=False, reason=reason, message=message)


@dataclass(frozen=True, slots=True)
class Event:
    """One event to record."""

    type: EventType
    reason: str
    message: str


def ready(reason: str, message: str) -> tuple[Condition, ...]:
    """Return the triple of a resource that is as asked for."""
    return (
        Condition.true(READY, reason, message),
        Condition.false(PROGRESSING, reason),
        Condition.false(DEGRADED, reason),
    )


def progressing(reason: str, message: str) -> tuple[Condition, ...]:
    """Return the triple of a resource that is on its way."""
    return (
        Condition.false(READY, reason, message),
        Condition.true(PROGRESSING, reason, message),
        Condition.false(DEGRADED, reason),
    )


def degraded(reason: str, message: str) -> tuple[Condition, ...]:
    """Return the triple of a resource that somebody must look at."""
    return (
        Condition.false(READY, reason, message),
        Condition.false(PROGRESSING, reason),
        Condition.true(DEGRADED, reason, message),
    )


def stamped(resource: Document, conditions: Iterable[Condition], now: datetime) -> list[dict[str, Any]]:
    """Return conditions as status holds them; the time stays while the status of the type stays."""
    previous = {item["type"]: item for item in dig(resource, "status", "conditions") or ()}
    return [
        _stamp(condition, previous.get(condition.type), generation(resource), now) for condition in conditions
    ]


def find(resource: Document, condition_type: str) -> dict[str, Any] | None:
    """Return a condition from a resource's status."""
    listed = dig(resource, "status", "conditions") or ()
    return next((item for item in listed if item["type"] == condition_type), None)


def transition_events(resource: Document, conditions: Iterable[Condition]) -> Iterator[Event]:
    """Yield an event when Ready takes another status or reason: a warning if the resource degraded."""
    by_type = {condition.type: condition for condition in conditions}
    now, before = by_type[READY], find(resource, READY)
    if before is not None and (before["status"] == "True", before["reason"]) == (now.status, now.reason):
        return
    bad = by_type.get(DEGRADED) is not None and by_type[DEGRADED].status
    yield Event(EventType.WARNING if bad else EventType.NORMAL, now.reason, now.message or now.reason)


def _stamp(
    condition: Condition, before: dict[str, Any] | None, observed_generation: int, now: datetime
) -> dict[str, Any]:
    status = "True" if condition.status else "False"
    same = before is not None and before["status"] == status
    return {
        "type": condition.type,
        "status": status,
        "reason": condition.reason,
        "message": condition.message[:_MAX_MESSAGE_CHARS],
        "lastTransitionTime": before["lastTransitionTime"] if same and before is not None else rfc3339(now),
        "observedGeneration": observed_generation,
    }
