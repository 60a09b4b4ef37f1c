"""Push configurations and the queue of what is still to be sent, as scripts for a database.

An event and its pushes are written in one transaction, so a kill loses neither or both. Pushes of one
configuration leave in the order of their ids, one at a time; a lease on the configuration keeps two replicas
from sending at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from a2a.types import TaskPushNotificationConfig

from kars_a2a_gateway.storage.scripts import Script, Statement


@dataclass(frozen=True, kw_only=True)
class Push:
    """The next thing to send for one configuration."""

    id: int
    agent: str
    task_id: str
    config_id: str
    payload: bytes
    attempts: int
    created_ms: int
    config: bytes


def put(agent: str, config: TaskPushNotificationConfig, now_ms: int, most: int) -> Script[bool]:
    """Store a configuration, replacing one of the same id; False when the task has too many."""
    key = (agent, config.task_id, config.id)
    rows = yield Statement(
        "SELECT COUNT(*) FROM push_configs WHERE agent = ? AND task_id = ? AND config_id <> ?", key
    )
    if int(rows[0][0]) >= most:
        return False
    yield Statement("DELETE FROM push_configs WHERE agent = ? AND task_id = ? AND config_id = ?", key)
    yield Statement(
        "INSERT INTO push_configs (agent, task_id, config_id, config, created_ms, lease_owner,"
        " lease_until_ms) VALUES (?, ?, ?, ?, ?, '', 0)",
        (*key, config.SerializeToString(), now_ms),
    )
    return True


def configs(agent: str, task_id: str) -> Script[list[TaskPushNotificationConfig]]:
    """Return the configurations of a task, oldest first."""
    rows = yield Statement(
        "SELECT config FROM push_configs WHERE agent = ? AND task_id = ? ORDER BY created_ms, config_id",
        (agent, task_id),
    )
    return [TaskPushNotificationConfig.FromString(bytes(row[0])) for row in rows]


def delete(agent: str, task_id: str, config_id: str) -> Script[None]:
    """Remove a configuration and what was queued for it; nothing happens when it is not there."""
    key = (agent, task_id, config_id)
    yield Statement("DELETE FROM pushes WHERE agent = ? AND task_id = ? AND config_id = ?", key)
    yield Statement("DELETE FROM push_configs WHERE agent = ? AND task_id = ? AND config_id = ?", key)


def enqueue(agent: str, task_id: str, payloads: Iterable[bytes], now_ms: int) -> Script[bool]:
    """Queue events for every configuration of a task; tells whether there was one."""
    rows = yield Statement(
        "SELECT config_id FROM push_configs WHERE agent = ? AND task_id = ?", (agent, task_id)
    )
    for payload in payloads:
        for row in rows:
            yield Statement(
                "INSERT INTO pushes (agent, task_id, config_id, payload, attempts, next_ms, created_ms)"
                " VALUES (?, ?, ?, ?, 0, ?, ?)",
                (agent, task_id, str(row[0]), payload, now_ms, now_ms),
            )
    return bool(rows)


def take_due(lease_owner: str, now_ms: int, until_ms: int, limit: int) -> Script[list[Push]]:
    """Take the first queued push of each configuration that is due and that nobody else sends."""
    rows = yield Statement(
        "SELECT p.id, p.agent, p.task_id, p.config_id, p.payload, p.attempts, p.created_ms, c.config"
        " FROM pushes p JOIN push_configs c"
        " ON c.agent = p.agent AND c.task_id = p.task_id AND c.config_id = p.config_id"
        " WHERE p.id = (SELECT MIN(q.id) FROM pushes q WHERE q.agent = p.agent AND q.task_id = p.task_id"
        " AND q.config_id = p.config_id)"
        " AND p.next_ms <= ? AND (c.lease_until_ms < ? OR c.lease_owner = ?) ORDER BY p.id LIMIT ?",
        (now_ms, now_ms, lease_owner, limit),
    )
    taken = []
    for row in rows:
        yield Statement(
            "UPDATE push_configs SET lease_owner = ?, lease_until_ms = ?"
            " WHERE agent = ? AND task_id = ? AND config_id = ?",
            (lease_owner, until_ms, str(row[1]), str(row[2]), str(row[3])),
        )
        taken.append(
            Push(
                id=int(row[0]),
                agent=str(row[1]),
                task_id=str(row[2]),
                config_id=str(row[3]),
                payload=bytes(row[4]),
                attempts=int(row[5]),
                created_ms=int(row[6]),
                config=bytes(row[7]),
            )
        )
    return taken


def done(push: Push) -> Script[None]:
    """Forget a push that was delivered, or given up."""
    yield Statement("DELETE FROM pushes WHERE id = ?", (push.id,))
    yield _release(push)


def postpone(push: Push, next_ms: int) -> Script[None]:
    """Try a push again later; those behind it wait."""
    yield Statement("UPDATE pushes SET attempts = attempts + 1, next_ms = ? WHERE id = ?", (next_ms, push.id))
    yield _release(push)


def release_all() -> Script[None]:
    """Let go of what a process before this one was sending; only where no other replica may be at it."""
    yield Statement("UPDATE push_configs SET lease_owner = '', lease_until_ms = 0")


def next_due_ms() -> Script[int | None]:
    """Return when the next push is due; None when nothing is queued."""
    rows = yield Statement("SELECT MIN(next_ms) FROM pushes")
    return int(rows[0][0]) if rows and rows[0][0] is not None else None


def _release(push: Push) -> Statement:
    return Statement(
        "UPDATE push_configs SET lease_until_ms = 0 WHERE agent = ? AND task_id = ? AND config_id = ?",
        (push.agent, push.task_id, push.config_id),
    )
