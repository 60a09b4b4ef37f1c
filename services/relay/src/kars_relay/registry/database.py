"""The registry's SQLite file: every change is on disk before it is answered."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from kars_common.errors import UnavailableError

_Result = TypeVar("_Result")
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS peers (
    peer TEXT PRIMARY KEY, statement BLOB NOT NULL, signature BLOB NOT NULL, key_id TEXT NOT NULL,
    serial INTEGER NOT NULL, identity_key BLOB NOT NULL, capabilities TEXT NOT NULL,
    presence_visible INTEGER NOT NULL, registered_at REAL NOT NULL, continuous INTEGER NOT NULL,
    log_index INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS serials (peer TEXT PRIMARY KEY, serial INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS signed_prekeys (
    peer TEXT PRIMARY KEY, key_id INTEGER NOT NULL, public_key BLOB NOT NULL, signature BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS last_resort (
    peer TEXT PRIMARY KEY, key_id INTEGER NOT NULL, algorithm INTEGER NOT NULL, public_key BLOB NOT NULL,
    signature BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS one_time (
    peer TEXT NOT NULL, kind INTEGER NOT NULL, key_id INTEGER NOT NULL, algorithm INTEGER NOT NULL,
    public_key BLOB NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (peer, kind, key_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS highest_ids (
    peer TEXT NOT NULL, kind INTEGER NOT NULL, key_id INTEGER NOT NULL, PRIMARY KEY (peer, kind));
CREATE TABLE IF NOT EXISTS takes (
    caller TEXT NOT NULL, peer TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (caller, peer));
CREATE INDEX IF NOT EXISTS takes_by_age ON takes (at);
CREATE TABLE IF NOT EXISTS ratings (
    rater TEXT NOT NULL, peer TEXT NOT NULL, score INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (peer, rater));
"""


class RegistryDatabase:
    """One connection, used by one thread; each call is a transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")

    async def open(self) -> None:
        """Open or create the file.

        Raises:
            UnavailableError: `registry_unavailable`.
        """
        loop = asyncio.get_running_loop()
        try:
            self._db = await loop.run_in_executor(self._thread, self._connect)
        except (sqlite3.Error, OSError) as exc:
            raise UnavailableError("registry_unavailable", f"cannot use {self._path}: {exc}") from exc

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown(wait=True)

    async def run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `work` in a transaction and return its answer once that is durable.

        Raises:
            UnavailableError: `registry_unavailable`; nothing was changed.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)
        except sqlite3.Error as exc:
            raise UnavailableError("registry_unavailable", "the registry's database failed") from exc

    def _transact(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            result = work(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return result

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA busy_timeout=5000")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"{self._path.name} has version {version}, known is {_VERSION}")
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version={_VERSION}")
        return db
