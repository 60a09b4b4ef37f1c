"""The agent's mesh state on disk: sealed, written by one process, never older than what was released.

Each record is sealed with AES-256-GCM-SIV under a key that the caller brings; its place and version are
associated data. A head record holds the store's version, which every transaction raises by one (compare and
swap), and a keyed sum over all records. So a record that was changed, swapped, deleted or put back is found
when the store is opened.

A copy of the whole store that is put back is found by its anchor: a small file beside it (or elsewhere; a
place that backups do not cover is best) with the highest version. What this cannot find: both put back
together, and a copy that runs on another machine. Peers see those (`CloneSuspectedError`).
"""

import contextlib
import fcntl
import hmac
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from kars_sdk.mesh import primitives
from kars_sdk.mesh.errors import StoreError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL, place BLOB NOT NULL, version INTEGER NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (kind, place)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER, sealed BLOB);
"""
_MODULUS: Final = 1 << 256
_NONCE = 12
_Place = tuple[str, bytes]


class Store:
    """Sealed records by kind and name; changes happen in transactions."""

    def __init__(self, folder: Path, key: bytes, *, anchor: Path | None = None) -> None:
        """Open the store, or make a new one.

        Raises:
            StoreError: `state_locked`, `state_key_wrong`, `state_damaged`, `state_rolled_back`,
                `anchor_missing`.
        """
        if len(key) != 32:
            raise StoreError("state_key_wrong", "the state key must have 32 bytes")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = primitives.hkdf(key, salt=b"", info=b"kars-mesh-store-v1", length=96)
        self._aead, self._place_key, self._sum_key = AESGCMSIV(keys[:32]), keys[32:64], keys[64:]
        self._index: dict[_Place, int] = {}
        self._counts: dict[str, int] = {}
        self._pending: dict[_Place, tuple[bytes, bytes | None]] | None = None
        self.version = 0
        self._sum = 0
        with contextlib.ExitStack() as opened:
            self._lock = _lock(folder / "lock")
            opened.callback(os.close, self._lock)
            self._database = opened.enter_context(contextlib.closing(_connect(folder / "state.db")))
            self._anchor = opened.enter_context(
                contextlib.closing(_Anchor(anchor or folder / "anchor", self._sum_key))
            )
            self._open()
            opened.pop_all()

    def close(self) -> None:
        """Close; another process may open it then."""
        self._database.close()
        self._anchor.close()
        os.close(self._lock)

    def get(self, kind: str, name: bytes) -> bytes | None:
        """Return a record, as this transaction left it."""
        place = self._place(kind, name)
        if self._pending is not None and place in self._pending:
            return self._pending[place][1]
        if place not in self._index:
            return None
        row = self._database.execute(
            "SELECT version, sealed FROM record WHERE kind = ? AND place = ?", place
        ).fetchone()
        if row is None:
            raise StoreError("state_damaged", f"a record of kind {kind} is gone")
        return self._unseal(place, *row)[1]

    def items(self, kind: str) -> list[tuple[bytes, bytes]]:
        """Return names and records of a kind, in order of name; committed ones only."""
        rows = self._database.execute(
            "SELECT place, version, sealed FROM record WHERE kind = ?", (kind,)
        ).fetchall()
        return sorted(self._unseal((kind, place), version, sealed) for place, version, sealed in rows)

    def count(self, kind: str) -> int:
        """Return how many records of a kind are committed; reads nothing."""
        return self._counts.get(kind, 0)

    def put(self, kind: str, name: bytes, value: bytes) -> None:
        """Write a record; inside a transaction."""
        self._change(kind, name, value)

    def delete(self, kind: str, name: bytes) -> None:
        """Remove a record, if it is there; inside a transaction."""
        self._change(kind, name, None)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything or nothing; on return it is on disk.

        An inner one joins the outer one: when it fails, its own changes are taken back, and the outer may go
        on.

        Raises:
            StoreError: `state_changed_elsewhere`, `state_not_written`.
        """
        if self._pending is not None:
            before = dict(self._pending)
            try:
                yield
            except BaseException:
                self._pending = before
                raise
            return
        self._pending = {}
        try:
            yield
            if self._pending:
                self._commit(self._pending)
        finally:
            self._pending = None

    def _change(self, kind: str, name: bytes, value: bytes | None) -> None:
        if self._pending is None:
            raise StoreError("no_transaction", "records are changed inside a transaction")
        self._pending[self._place(kind, name)] = (name, value)

    def _commit(self, changes: dict[_Place, tuple[bytes, bytes | None]]) -> None:
        version = self.version + 1
        index = dict.fromkeys(changes, 0)
        total = self._sum
        writes: list[tuple[str, bytes, int, bytes]] = []
        for place, (name, value) in changes.items():
            total -= self._index.get(place, 0)
            if value is not None:
                sealed = self._seal(place, version, name, value)
                index[place] = self._term(place, version, sealed)
                total += index[place]
                writes.append((*place, version, sealed))
        total %= _MODULUS
        try:
            self._write(version, total, writes, [place for place, term in index.items() if not term])
        except sqlite3.Error as exc:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise StoreError("state_not_written", f"the state could not be written: {exc}") from exc
        self.version, self._sum = version, total
        for place, term in index.items():
            self._note(place, term)
        self._anchor.write(version)

    def _write(
        self, version: int, total: int, writes: list[tuple[str, bytes, int, bytes]], deletes: list[_Place]
    ) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        head = self._seal(("head", b""), version, b"", total.to_bytes(32, "big"))
        swapped = database.execute(
            "UPDATE head SET version = ?, sealed = ? WHERE one = 1 AND version = ?",
            (version, head, version - 1),
        )
        if swapped.rowcount != 1:
            database.execute("ROLLBACK")
            raise StoreError("state_changed_elsewhere", "another writer has changed the state")
        database.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", writes)
        database.executemany("DELETE FROM record WHERE kind = ? AND place = ?", deletes)
        database.execute("COMMIT")

    def _open(self) -> None:
        row = self._database.execute("SELECT version, sealed FROM head WHERE one = 1").fetchone()
        if row is None:
            if self._anchor.exists:
                raise StoreError(
                    "state_rolled_back",
                    "there is an anchor but no state: state was deleted. To start as a new peer, delete both",
                )
            self._anchor.write(0)
            sealed = self._seal(("head", b""), 0, b"", bytes(32))
            self._database.execute("INSERT INTO head VALUES (1, 0, ?)", (sealed,))
            self._sum = 0
            return
        self.version = int(row[0])
        self._sum = int.from_bytes(self._unseal(("head", b""), *row, reason="state_key_wrong")[1], "big")
        self._anchor.check(self.version)
        for kind, place, version, sealed in self._database.execute(
            "SELECT kind, place, version, sealed FROM record"
        ):
            self._note((kind, place), self._term((kind, place), version, sealed))
        if sum(self._index.values()) % _MODULUS != self._sum:
            raise StoreError("state_damaged", "records were changed, removed or put back behind our back")

    def _note(self, place: _Place, term: int) -> None:
        """Enter what a record adds to the sum; 0 for one that is gone."""
        before = self._index.pop(place, 0)
        if term:
            self._index[place] = term
        self._counts[place[0]] = self._counts.get(place[0], 0) + bool(term) - bool(before)

    def _place(self, kind: str, name: bytes) -> _Place:
        return kind, primitives.hmac_sha256(self._place_key, kind.encode() + b"\0" + name)[:16]

    def _seal(self, place: _Place, version: int, name: bytes, value: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        text = len(name).to_bytes(2, "big") + name + value
        return nonce + self._aead.encrypt(nonce, text, _binding(place, version))

    def _unseal(
        self, place: _Place, version: int, sealed: bytes, *, reason: str = "state_damaged"
    ) -> tuple[bytes, bytes]:
        try:
            text = self._aead.decrypt(sealed[:_NONCE], sealed[_NONCE:], _binding(place, version))
        except (InvalidTag, ValueError) as exc:
            raise StoreError(reason, f"a record of kind {place[0]} cannot be unsealed with this key") from exc
        length = int.from_bytes(text[:2], "big")
        return text[2 : 2 + length], text[2 + length :]

    def _term(self, place: _Place, version: int, sealed: bytes) -> int:
        text = _binding(place, version) + sealed[:_NONCE] + sealed[-16:]
        return int.from_bytes(primitives.hmac_sha256(self._sum_key, text), "big")


class _Anchor:
    """The highest version that was committed, in a file of its own. Not synced: it may lag, never lead."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._key = key
        self.exists = path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, version: int) -> None:
        data = version.to_bytes(8, "big")
        os.pwrite(self._file, data + primitives.hmac_sha256(self._key, b"anchor" + data), 0)

    def check(self, version: int) -> None:
        data = os.pread(self._file, 40, 0)
        if not self.exists or not hmac.compare_digest(
            data[8:], primitives.hmac_sha256(self._key, b"anchor" + data[:8])
        ):
            raise StoreError(
                "anchor_missing", "the state's anchor is missing or damaged: it may be rolled back"
            )
        if version < int.from_bytes(data[:8], "big"):
            raise StoreError(
                "state_rolled_back",
                "the state is older than its anchor: an old copy was put back. Start as a new peer, or "
                "restore the newest state",
            )

    def close(self) -> None:
        os.close(self._file)


def _binding(place: _Place, version: int) -> bytes:
    return place[0].encode() + b"\0" + place[1] + version.to_bytes(8, "big")


def _connect(path: Path) -> sqlite3.Connection:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(_SCHEMA)
    return database


def _lock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(file, 32, 0).decode(errors="replace").strip()
        os.close(file)
        raise StoreError(
            "state_locked", f"process {holder or 'unknown'} uses this state ({path}); one process at a time"
        ) from exc
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
