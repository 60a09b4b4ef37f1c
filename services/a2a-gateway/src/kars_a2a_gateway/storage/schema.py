"""The tables, for both engines.

`agent` is `namespace/name`. Times are milliseconds or nanoseconds since the epoch, as their names say. Bytes
are serialised `lf.a2a.v1` messages.
"""

VERSION = 1

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS settings (
        name TEXT PRIMARY KEY,
        value {bytes} NOT NULL
    )
    """,
    # outer_context is what the caller calls the context, inner_context what the agent calls it.
    """
    CREATE TABLE IF NOT EXISTS tasks (
        agent TEXT NOT NULL,
        task_id TEXT NOT NULL,
        principal TEXT NOT NULL,
        outer_context TEXT NOT NULL,
        inner_context TEXT NOT NULL,
        state INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        updated_ns BIGINT NOT NULL,
        snapshot {bytes} NOT NULL,
        lease_owner TEXT NOT NULL,
        lease_until_ms BIGINT NOT NULL,
        PRIMARY KEY (agent, task_id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS tasks_by_principal ON tasks (agent, principal, updated_ns, task_id)",
    "CREATE INDEX IF NOT EXISTS tasks_open ON tasks (ended, lease_until_ms)",
    """
    CREATE TABLE IF NOT EXISTS contexts (
        agent TEXT NOT NULL,
        inner_context TEXT NOT NULL,
        principal TEXT NOT NULL,
        outer_context TEXT NOT NULL,
        PRIMARY KEY (agent, inner_context),
        UNIQUE (agent, principal, outer_context)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS messages (
        agent TEXT NOT NULL,
        principal TEXT NOT NULL,
        message_id TEXT NOT NULL,
        request_hash {bytes} NOT NULL,
        task_id TEXT NOT NULL,
        reply {bytes},
        created_ms BIGINT NOT NULL,
        PRIMARY KEY (agent, principal, message_id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS messages_by_age ON messages (created_ms)",
    """
    CREATE TABLE IF NOT EXISTS push_configs (
        agent TEXT NOT NULL,
        task_id TEXT NOT NULL,
        config_id TEXT NOT NULL,
        config {bytes} NOT NULL,
        created_ms BIGINT NOT NULL,
        lease_owner TEXT NOT NULL,
        lease_until_ms BIGINT NOT NULL,
        PRIMARY KEY (agent, task_id, config_id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS pushes (
        id {identity},
        agent TEXT NOT NULL,
        task_id TEXT NOT NULL,
        config_id TEXT NOT NULL,
        payload {bytes} NOT NULL,
        attempts INTEGER NOT NULL,
        next_ms BIGINT NOT NULL,
        created_ms BIGINT NOT NULL
    )
    """,
    # Amounts in minor units; times are ours, whatever an attempt says.
    """
    CREATE TABLE IF NOT EXISTS payments (
        mandate TEXT NOT NULL,
        nonce TEXT NOT NULL,
        amount BIGINT NOT NULL,
        at_ms BIGINT NOT NULL,
        PRIMARY KEY (mandate, nonce)
    )
    """,
    "CREATE INDEX IF NOT EXISTS payments_by_time ON payments (mandate, at_ms)",
    "CREATE INDEX IF NOT EXISTS pushes_by_config ON pushes (agent, task_id, config_id, id)",
)

SQLITE = {"bytes": "BLOB", "identity": "INTEGER PRIMARY KEY AUTOINCREMENT"}
POSTGRES = {"bytes": "BYTEA", "identity": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}


def statements(words: dict[str, str]) -> list[str]:
    """Return the statements that make the tables of one engine."""
    return [table.format_map(words) for table in TABLES]
