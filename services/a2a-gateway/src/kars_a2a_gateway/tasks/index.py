"""The index: which task, context and message belongs to whom, as scripts for a database.

Every look-up begins with (agent, principal). Somebody else's row and no row give the same answer, because the
query is the same.
"""

import uuid
from dataclasses import dataclass

from a2a.types import Task

from kars_a2a_gateway.storage.scripts import Row, Script, Statement
from kars_a2a_gateway.tasks import states
from kars_a2a_gateway.tasks.owners import Owner

_COLUMNS = "task_id, principal, outer_context, inner_context, state, ended, updated_ns, snapshot"


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One task as it is stored."""

    owner: Owner
    task_id: str
    outer_context: str
    inner_context: str
    ended: bool
    snapshot: bytes

    def task(self) -> Task:
        """Return the stored task, with the agent's own context."""
        return Task.FromString(self.snapshot)


@dataclass(frozen=True, kw_only=True)
class Context:
    """A conversation: what the caller calls it, and what the agent does. Empty names: a new one."""

    outer: str = ""
    inner: str = ""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of a message that was sent before."""

    task_id: str
    reply: bytes | None


def find(owner: Owner, task_id: str) -> Script[TaskRow | None]:
    """Return a task of this owner, or None."""
    rows = yield Statement(
        f"SELECT {_COLUMNS} FROM tasks WHERE agent = ? AND task_id = ? AND principal = ?",  # noqa: S608  # constant
        (owner.agent, task_id, owner.principal),
    )
    return _row(owner.agent, rows[0]) if rows else None


def resolve_context(owner: Owner, outer: str) -> Script[Context]:
    """Return the agent's name for a context of this owner, claiming it when it is new.

    A name that is somebody else's context at the agent is claimed too, under another inner name: the caller
    sees no difference and never enters the other's conversation.
    """
    rows = yield Statement(
        "SELECT inner_context FROM contexts WHERE agent = ? AND principal = ? AND outer_context = ?",
        (owner.agent, owner.principal, outer),
    )
    if rows:
        return Context(outer=outer, inner=str(rows[0][0]))
    taken = yield Statement(
        "SELECT 1 FROM contexts WHERE agent = ? AND inner_context = ?", (owner.agent, outer)
    )
    inner = str(uuid.uuid4()) if taken else outer
    yield _claim(owner, Context(outer=outer, inner=inner))
    return Context(outer=outer, inner=inner)


def open_tasks(owner: Owner) -> Script[int]:
    """Count the tasks of an owner that have not ended."""
    rows = yield Statement(
        "SELECT COUNT(*) FROM tasks WHERE agent = ? AND principal = ? AND ended = 0",
        (owner.agent, owner.principal),
    )
    return int(rows[0][0])


def owned(owner: Owner, task_ids: tuple[str, ...]) -> Script[bool]:
    """Tell whether every one of these tasks is this owner's."""
    for task_id in task_ids:
        rows = yield Statement(
            "SELECT 1 FROM tasks WHERE agent = ? AND task_id = ? AND principal = ?",
            (owner.agent, task_id, owner.principal),
        )
        if not rows:
            return False
    return True


def begin_message(owner: Owner, message_id: str, request_hash: bytes, now_ms: int) -> Script[Sent | None]:
    """Note that a message is being sent; return what became of it when the very same was sent before."""
    rows = yield Statement(
        "SELECT request_hash, task_id, reply FROM messages WHERE agent = ? AND principal = ?"
        " AND message_id = ?",
        (owner.agent, owner.principal, message_id),
    )
    if rows and bytes(rows[0][0]) == request_hash:
        return Sent(task_id=str(rows[0][1]), reply=bytes(rows[0][2]) if rows[0][2] is not None else None)
    yield Statement(
        "DELETE FROM messages WHERE agent = ? AND principal = ? AND message_id = ?",
        (owner.agent, owner.principal, message_id),
    )
    yield Statement(
        "INSERT INTO messages (agent, principal, message_id, request_hash, task_id, reply, created_ms)"
        " VALUES (?, ?, ?, ?, '', NULL, ?)",
        (owner.agent, owner.principal, message_id, request_hash, now_ms),
    )
    return None


def forget_message(owner: Owner, message_id: str) -> Script[None]:
    """Take back `begin_message`: the agent refused, so the same message may be sent again."""
    yield Statement(
        "DELETE FROM messages WHERE agent = ? AND principal = ? AND message_id = ? AND task_id = ''"
        " AND reply IS NULL",
        (owner.agent, owner.principal, message_id),
    )


def message_answered(owner: Owner, message_id: str, reply: bytes) -> Script[None]:
    """Keep the message that an agent answered with instead of a task."""
    yield Statement(
        "UPDATE messages SET reply = ? WHERE agent = ? AND principal = ? AND message_id = ?",
        (reply, owner.agent, owner.principal, message_id),
    )


def message_became(owner: Owner, message_id: str, task_id: str) -> Script[None]:
    """Note which task a message belongs to."""
    yield Statement(
        "UPDATE messages SET task_id = ? WHERE agent = ? AND principal = ? AND message_id = ?",
        (task_id, owner.agent, owner.principal, message_id),
    )


def claim_new_context(owner: Owner, inner: str) -> Script[bool]:
    """Claim a context that the agent made; False when it is another caller's."""
    rows = yield Statement(
        "SELECT principal FROM contexts WHERE agent = ? AND inner_context = ?", (owner.agent, inner)
    )
    if rows:
        return str(rows[0][0]) == owner.principal
    yield _claim(owner, Context(outer=inner, inner=inner))
    return True


def insert(
    owner: Owner, task: Task, context: Context, *, updated_ns: int, lease_owner: str, lease_until_ms: int
) -> Script[bool]:
    """Store a new task; False when its id is there already, whoever's it is."""
    rows = yield Statement("SELECT 1 FROM tasks WHERE agent = ? AND task_id = ?", (owner.agent, task.id))
    if rows:
        return False
    yield Statement(
        "INSERT INTO tasks (agent, task_id, principal, outer_context, inner_context, state, ended,"
        " updated_ns, snapshot, lease_owner, lease_until_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            owner.agent,
            task.id,
            owner.principal,
            context.outer,
            context.inner,
            int(task.status.state),
            int(states.ended(task)),
            updated_ns,
            task.SerializeToString(),
            lease_owner,
            lease_until_ms,
        ),
    )
    return True


def update(agent: str, task: Task, updated_ns: int) -> Script[None]:
    """Store what a task is now. A task that ended stays as it ended."""
    yield Statement(
        "UPDATE tasks SET state = ?, ended = ?, updated_ns = ?, snapshot = ?"
        " WHERE agent = ? AND task_id = ? AND (ended = 0 OR state = ?)",
        (
            int(task.status.state),
            int(states.ended(task)),
            updated_ns,
            task.SerializeToString(),
            agent,
            task.id,
            int(task.status.state),
        ),
    )


def renew_leases(lease_owner: str, until_ms: int) -> Script[None]:
    """Say that this process still follows its tasks."""
    yield Statement(
        "UPDATE tasks SET lease_until_ms = ? WHERE lease_owner = ? AND ended = 0", (until_ms, lease_owner)
    )


def release(agent: str, task_id: str, lease_owner: str) -> Script[None]:
    """Let go of a task that rests."""
    yield Statement(
        "UPDATE tasks SET lease_owner = '', lease_until_ms = 0 WHERE agent = ? AND task_id = ?"
        " AND lease_owner = ?",
        (agent, task_id, lease_owner),
    )


def take(agent: str, task_id: str, lease_owner: str, until_ms: int) -> Script[None]:
    """Follow a task, whoever did before: a caller has just talked to it through this process."""
    yield Statement(
        "UPDATE tasks SET lease_owner = ?, lease_until_ms = ? WHERE agent = ? AND task_id = ?",
        (lease_owner, until_ms, agent, task_id),
    )


def take_abandoned(lease_owner: str, now_ms: int, until_ms: int, limit: int) -> Script[list[TaskRow]]:
    """Take over running tasks whose follower is gone, and return them."""
    rows = yield Statement(
        f"SELECT {_COLUMNS}, agent FROM tasks"  # noqa: S608  # constant
        " WHERE ended = 0 AND lease_owner <> '' AND lease_owner <> ? AND lease_until_ms < ? LIMIT ?",
        (lease_owner, now_ms, limit),
    )
    taken = [_row(str(row[8]), row) for row in rows]
    for row in taken:
        yield Statement(
            "UPDATE tasks SET lease_owner = ?, lease_until_ms = ? WHERE agent = ? AND task_id = ?",
            (lease_owner, until_ms, row.owner.agent, row.task_id),
        )
    return taken


def forget_old(before_ns: int, before_ms: int) -> Script[None]:
    """Drop tasks that ended before, with their pushes' configurations, and old messages."""
    yield Statement(
        "DELETE FROM push_configs WHERE EXISTS (SELECT 1 FROM tasks WHERE tasks.agent = push_configs.agent"
        " AND tasks.task_id = push_configs.task_id AND tasks.ended = 1 AND tasks.updated_ns < ?)",
        (before_ns,),
    )
    yield Statement("DELETE FROM tasks WHERE ended = 1 AND updated_ns < ?", (before_ns,))
    yield Statement("DELETE FROM messages WHERE created_ms < ?", (before_ms,))


def setting(name: str, fresh: bytes) -> Script[bytes]:
    """Return a value that all replicas share, made by whoever asks first."""
    rows = yield Statement("SELECT value FROM settings WHERE name = ?", (name,))
    if rows:
        return bytes(rows[0][0])
    yield Statement("INSERT INTO settings (name, value) VALUES (?, ?)", (name, fresh))
    return fresh


def _claim(owner: Owner, context: Context) -> Statement:
    return Statement(
        "INSERT INTO contexts (agent, inner_context, principal, outer_context) VALUES (?, ?, ?, ?)",
        (owner.agent, context.inner, owner.principal, context.outer),
    )


def _row(agent: str, row: Row) -> TaskRow:
    return TaskRow(
        owner=Owner(agent, str(row[1])),
        task_id=str(row[0]),
        outer_context=str(row[2]),
        inner_context=str(row[3]),
        ended=bool(row[5]),
        snapshot=bytes(row[7]),
    )
