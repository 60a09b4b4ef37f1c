"""Events: what happened to a resource, for people. Equal ones are counted, old ones forgotten."""

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

from kars_controller.resources.keys import Document, ResourceKey
from kars_controller.resources.timestamps import rfc3339
from kars_controller.storage import Database

_MAX_MESSAGE_CHARS = 1024
_KEPT_PER_RESOURCE = 100


class EventType(StrEnum):
    """Severity, in Kubernetes' words."""

    NORMAL = "Normal"
    WARNING = "Warning"


class EventLog:
    """Records events about resources; keeps the last 100 of each."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._now = now

    def record(self, resource: Document, event_type: EventType, reason: str, message: str) -> None:
        """Record an event; the same event again only raises its count."""
        key, uid, time = ResourceKey.of(resource), resource["metadata"]["uid"], rfc3339(self._now())
        where = (key.kind, key.namespace, key.name)
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO events"
                " (kind, namespace, name, uid, type, reason, message, count, first_time, last_time)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?)"
                " ON CONFLICT (uid, type, reason, message)"
                " DO UPDATE SET count = count + 1, last_time = excluded.last_time",
                (*where, uid, event_type.value, reason, message[:_MAX_MESSAGE_CHARS], time, time),
            )
            self._database.execute(
                "DELETE FROM events WHERE kind = ? AND namespace = ? AND name = ? AND id NOT IN"
                " (SELECT id FROM events WHERE kind = ? AND namespace = ? AND name = ?"
                "  ORDER BY last_time DESC, id DESC LIMIT ?)",
                (*where, *where, _KEPT_PER_RESOURCE),
            )

    def list_of(self, key: ResourceKey) -> list[Document]:
        """Return the events about a resource, oldest first (by when they last happened)."""
        rows = self._database.rows(
            "SELECT * FROM events WHERE kind = ? AND namespace = ? AND name = ? ORDER BY last_time, id",
            (key.kind, key.namespace, key.name),
        )
        return [
            {
                "type": row["type"],
                "reason": row["reason"],
                "message": row["message"],
                "count": row["count"],
                "firstTimestamp": row["first_time"],
                "lastTimestamp": row["last_time"],
                "involvedObject": {
                    "kind": key.kind,
                    "namespace": key.namespace,
                    "name": key.name,
                    "uid": row["uid"],
                },
            }
            for row in rows
        ]
