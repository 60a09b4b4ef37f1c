"""Opens the SQLite file, brings its schema up to date and hands out transactions.

One connection, used from one thread (the event loop's): every statement is small and local. WAL with
full synchronisation, so that what was answered survives a power cut. A file of a newer schema than
this code knows is refused rather than guessed at.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kars_common.errors import FailedPreconditionError, UnavailableError

from kars_controller.storage.schema import MIGRATIONS

_BUSY_TIMEOUT_S = 5.0


class Database:
    """A migrated SQLite database. Not thread-safe; `close` when done."""

    def __init__(self, path: Path) -> None:
        """Open or create the file with mode 0600.

        Raises:
            UnavailableError: `storage_unavailable`, the file cannot be opened or is locked.
            FailedPreconditionError: `storage_too_new`, written by a newer controller.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._migrate()
        except (OSError, sqlite3.Error) as exc:
            raise UnavailableError("storage_unavailable", f"cannot open {path.name}: {exc}") from exc

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one write transaction: all of it or nothing. Does not nest."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(sql, parameters)

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """Return the first row, or None."""
        row: sqlite3.Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return all rows."""
        return self._connection.execute(sql, parameters).fetchall()

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it."""
        self._connection.close()

    def _migrate(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise FailedPreconditionError(
                "storage_too_new",
                f"{self.path.name} has schema {version}, this controller knows {len(MIGRATIONS)}",
            )
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            with self.transaction():
                for statement in filter(str.strip, script.split(";")):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version={number}")
