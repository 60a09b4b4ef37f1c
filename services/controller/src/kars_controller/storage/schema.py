"""The tables, as migrations: entry N brings a file from schema N to N+1. Entries are never edited."""

_INITIAL = """
CREATE TABLE resources (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    uid TEXT NOT NULL UNIQUE, resource_version INTEGER NOT NULL, document TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;

CREATE TABLE changes (
    resource_version INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, namespace TEXT NOT NULL, type TEXT NOT NULL, document TEXT NOT NULL
);

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
    type TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
    count INTEGER NOT NULL, first_time TEXT NOT NULL, last_time TEXT NOT NULL,
    UNIQUE (uid, type, reason, message)
);
CREATE INDEX events_of ON events (kind, namespace, name);

CREATE TABLE join_tokens (
    token_hash BLOB PRIMARY KEY, spiffe_id TEXT NOT NULL,
    expires_at REAL NOT NULL, spent_at REAL
) WITHOUT ROWID;

CREATE TABLE bundles (
    namespace TEXT NOT NULL, name TEXT NOT NULL,
    version INTEGER NOT NULL, content_digest TEXT NOT NULL, digest TEXT NOT NULL,
    payload BLOB NOT NULL, signature BLOB NOT NULL, key_id TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID;

CREATE TABLE approvals (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL, sandbox TEXT NOT NULL,
    state INTEGER NOT NULL, expires_at REAL NOT NULL, closed_at REAL, document BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX approvals_open ON approvals (state, expires_at);

CREATE TABLE witnessed_heads (
    origin TEXT PRIMARY KEY, log_public_key BLOB NOT NULL, size INTEGER NOT NULL,
    root BLOB NOT NULL, signed_note BLOB NOT NULL
) WITHOUT ROWID;
"""

_MESH_IDENTITIES = """
CREATE TABLE mesh_identities (
    peer TEXT PRIMARY KEY, serial INTEGER NOT NULL, identity_key BLOB NOT NULL
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_INITIAL, _MESH_IDENTITIES)
