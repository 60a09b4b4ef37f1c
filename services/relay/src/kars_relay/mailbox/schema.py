"""The SQLite file of the mailboxes: its tables, how it is opened, and how many rows are written at once.

One row a run of envelopes. Its key is mailbox and first sequence number in one integer, so that reading on
and acknowledging are ranges of the table itself.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

SEQ_BITS = 42
MAX_SEQ = (1 << SEQ_BITS) - 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mailboxes (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, serial INTEGER NOT NULL,
    token BLOB NOT NULL DEFAULT x'');
CREATE TABLE IF NOT EXISTS places (
    mailbox INTEGER PRIMARY KEY, acked INTEGER NOT NULL, next_seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    key INTEGER PRIMARY KEY, count INTEGER NOT NULL, size INTEGER NOT NULL, sender TEXT NOT NULL,
    recipient TEXT NOT NULL, expires_at INTEGER NOT NULL, stored_at_ms INTEGER NOT NULL, ids BLOB NOT NULL,
    segment INTEGER NOT NULL, place INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS recent (
    id INTEGER PRIMARY KEY, mailbox INTEGER NOT NULL, sender TEXT NOT NULL, ids BLOB NOT NULL,
    at INTEGER NOT NULL);
"""
_VERSION = 1


def key(mailbox: int, seq: int) -> int:
    """Return the row key of a run."""
    return mailbox << SEQ_BITS | seq


_CHUNKS = (128, 16, 1)


def write_rows(db: sqlite3.Connection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Execute `statement` once for many rows.

    sqlite3 lets go of the interpreter for every execution, and a busy event loop gives it back late: one
    statement of many rows costs one such wait, `executemany` costs one a row (measured: commits under load
    took 27 ms with it).

    Args:
        db: within a transaction.
        statement: with `{}` where the rows' placeholders belong.
        rows: all of one width.
    """
    place = 0
    for size in _CHUNKS:
        while len(rows) - place >= size:
            chunk = rows[place : place + size]
            mark = f"({','.join('?' * len(chunk[0]))})"
            db.execute(statement.format(",".join([mark] * size)), [value for row in chunk for value in row])
            place += size


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the file. Every commit reaches the disk before it returns (synchronous=FULL).

    Raises:
        sqlite3.Error: it is no such file, or of a version that this program does not know.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA page_size=4096")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=2048")
    connection.execute("PRAGMA busy_timeout=5000")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise sqlite3.DatabaseError(f"{path.name} has version {version}, this program knows {_VERSION}")
    connection.executescript(_SCHEMA)
    connection.execute(f"PRAGMA user_version={_VERSION}")
    return connection
