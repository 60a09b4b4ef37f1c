"""Who is registered: one statement a peer, newer ones only, each in the registration log.

A serial that was seen is never undercut, not even after a peer has left: an old statement that somebody kept
brings no old key back. Changing the key is an act of its own and drops the prekeys of the old one.
"""

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars.mesh.v1 import identity_pb2
from kars_common.errors import FailedPreconditionError, InvalidInputError, NotFoundError

from kars_relay.identity import Statement, check_continuity
from kars_relay.registry.database import RegistryDatabase
from kars_relay.transparency import RegistrationLog

_CAPABILITY = re.compile(r"[a-z0-9._:/-]{1,64}")
_MAX_CAPABILITIES = 32


@dataclass(frozen=True, kw_only=True)
class Registered:
    """One peer as the registry holds it."""

    peer: str
    signed: identity_pb2.SignedStatement
    identity_key: bytes
    capabilities: tuple[str, ...]
    presence_visible: bool
    registered_at_s: float
    continuous: bool
    log_index: int


class Directory:
    """Registrations. Callers have been authenticated and statements verified before."""

    def __init__(
        self, database: RegistryDatabase, log: RegistrationLog, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._log = log
        self._clock_s = clock_s
        self._changing = asyncio.Lock()
        """Serials are compared, logged and saved as one step."""

    async def register(
        self, statement: Statement, capabilities: Sequence[str], *, presence_visible: bool
    ) -> Registered:
        """Enter a peer, or refresh it under its key.

        Raises:
            FailedPreconditionError: `key_change_needs_rotate`, `statement_rollback`.
            InvalidInputError: `capability_invalid`.
        """
        offered = _checked(capabilities)
        async with self._changing:
            return await self._register(statement, offered, presence_visible=presence_visible)

    async def _register(
        self, statement: Statement, offered: Sequence[str], *, presence_visible: bool
    ) -> Registered:
        held = await self.find(str(statement.peer))
        if held is not None and held.identity_key != statement.identity_key_raw:
            raise FailedPreconditionError(
                "key_change_needs_rotate", "this peer is registered with another key; rotate it"
            )
        if held is not None and held.signed.statement == statement.signed.statement:
            index, continuous = held.log_index, held.continuous
        else:
            await self._check_serial(statement)
            index = await self._log.registered(statement)
            continuous = held is not None and held.continuous
        return await self._save(statement, offered, presence_visible, continuous, index, drop_prekeys=False)

    async def rotate(self, statement: Statement, continuity_proof: bytes) -> Registered:
        """Replace a peer's key.

        Raises:
            NotFoundError: `peer_not_found`.
            FailedPreconditionError: `statement_rollback`.
            UnauthenticatedError: `continuity_proof_invalid`.
        """
        async with self._changing:
            return await self._rotate(statement, continuity_proof)

    async def _rotate(self, statement: Statement, continuity_proof: bytes) -> Registered:
        held = await self.find(str(statement.peer))
        if held is None:
            raise NotFoundError("peer_not_found", "register before rotating")
        if continuity_proof:
            old = Ed25519PublicKey.from_public_bytes(held.identity_key)
            check_continuity(old, continuity_proof, statement.signed.statement)
        await self._check_serial(statement)
        index = await self._log.rotated(statement, continuous=bool(continuity_proof))
        return await self._save(
            statement,
            held.capabilities,
            held.presence_visible,
            bool(continuity_proof),
            index,
            drop_prekeys=held.identity_key != statement.identity_key_raw,
        )

    async def deregister(self, peer: str) -> None:
        """Remove a peer and all that belongs to it; its highest serial stays."""

        def work(db: sqlite3.Connection) -> None:
            _drop_prekeys(db, peer)
            db.execute("DELETE FROM peers WHERE peer = ?", (peer,))
            db.execute("DELETE FROM ratings WHERE peer = ? OR rater = ?", (peer, peer))
            db.execute("DELETE FROM takes WHERE peer = ? OR caller = ?", (peer, peer))

        await self._database.run(work)

    async def find(self, peer: str) -> Registered | None:
        """Return a peer, or None."""

        def work(db: sqlite3.Connection) -> Registered | None:
            row = db.execute("SELECT * FROM peers WHERE peer = ?", (peer,)).fetchone()
            return None if row is None else _registered(row)

        return await self._database.run(work)

    async def page(self, after: str, limit: int) -> list[Registered]:
        """Return peers in order of name, after a name."""

        def work(db: sqlite3.Connection) -> list[Registered]:
            rows = db.execute("SELECT * FROM peers WHERE peer > ? ORDER BY peer LIMIT ?", (after, limit))
            return [_registered(row) for row in rows]

        return await self._database.run(work)

    async def _check_serial(self, statement: Statement) -> None:
        def work(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT serial FROM serials WHERE peer = ?", (str(statement.peer),)).fetchone()
            return 0 if row is None else int(row["serial"])

        if statement.serial <= await self._database.run(work):
            raise FailedPreconditionError(
                "statement_rollback", "a statement with this serial or a higher one was registered before"
            )

    async def _save(
        self,
        statement: Statement,
        capabilities: Sequence[str],
        presence_visible: bool,
        continuous: bool,
        log_index: int,
        *,
        drop_prekeys: bool,
    ) -> Registered:
        peer, signed = str(statement.peer), statement.signed
        now_s = self._clock_s()

        def work(db: sqlite3.Connection) -> Registered:
            if drop_prekeys:
                _drop_prekeys(db, peer)
            db.execute(
                "INSERT INTO peers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (peer) DO UPDATE SET"
                " statement = excluded.statement, signature = excluded.signature, key_id = excluded.key_id,"
                " serial = excluded.serial, identity_key = excluded.identity_key,"
                " capabilities = excluded.capabilities, presence_visible = excluded.presence_visible,"
                " continuous = excluded.continuous, log_index = excluded.log_index",
                (
                    peer,
                    signed.statement,
                    signed.signature,
                    signed.key_id,
                    statement.serial,
                    statement.identity_key_raw,
                    json.dumps(list(capabilities)),
                    presence_visible,
                    now_s,
                    continuous,
                    log_index,
                ),
            )
            db.execute(
                "INSERT INTO serials VALUES (?, ?) ON CONFLICT (peer) DO UPDATE SET"
                " serial = max(serial, excluded.serial)",
                (peer, statement.serial),
            )
            return _registered(db.execute("SELECT * FROM peers WHERE peer = ?", (peer,)).fetchone())

        return await self._database.run(work)


def _registered(row: sqlite3.Row) -> Registered:
    signed = identity_pb2.SignedStatement(
        statement=row["statement"], signature=row["signature"], key_id=row["key_id"]
    )
    return Registered(
        peer=row["peer"],
        signed=signed,
        identity_key=row["identity_key"],
        capabilities=tuple(json.loads(row["capabilities"])),
        presence_visible=bool(row["presence_visible"]),
        registered_at_s=row["registered_at"],
        continuous=bool(row["continuous"]),
        log_index=row["log_index"],
    )


def _drop_prekeys(db: sqlite3.Connection, peer: str) -> None:
    # highest_ids stays: an id that was used once is never used again, whatever the key.
    for table in ("signed_prekeys", "last_resort", "one_time"):
        db.execute(f"DELETE FROM {table} WHERE peer = ?", (peer,))  # noqa: S608 - names of our own


def _checked(capabilities: Sequence[str]) -> tuple[str, ...]:
    if len(capabilities) > _MAX_CAPABILITIES or not all(map(_CAPABILITY.fullmatch, capabilities)):
        raise InvalidInputError(
            "capability_invalid", "at most 32 capabilities, each 1 to 64 of a-z 0-9 . _ - : /"
        )
    return tuple(sorted(set(capabilities)))
