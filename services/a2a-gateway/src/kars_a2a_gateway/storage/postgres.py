"""PostgreSQL through asyncpg, for several replicas that share their tasks.

Transactions are serialisable; one that lost against another is run again (scripts do nothing but SQL, so that
is safe), a few times, then refused.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]  # ships no stubs
from kars_common.errors import UnavailableError
from kars_common.tasks import Backoff

from kars_a2a_gateway.storage import schema
from kars_a2a_gateway.storage.scripts import Script, Statement

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_ATTEMPTS = 8
_TIMEOUT_S = 10.0
_SCHEMA_LOCK = 0x6B617273


class PostgresDatabase:
    """A pool of connections. Build with `open_postgres`."""

    def __init__(self, pool: Any) -> None:  # noqa: ANN401  # asyncpg has no types
        self._pool = pool

    async def run(
        self,
        make: Callable[[], Script[_Result]],
        *,
        durable: bool = True,  # noqa: ARG002  # the server's own setting decides
    ) -> _Result:
        """Run a script, made anew for each attempt, until no other transaction interferes."""
        backoff = Backoff(first_s=0.005, most_s=0.2)
        for _ in range(_ATTEMPTS):
            try:
                return await self._once(make())
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError):
                await backoff.wait()
        raise UnavailableError("database_unavailable", "too many transactions interfere")

    async def close(self) -> None:
        """Close the pool."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _once(self, script: Script[_Result]) -> _Result:
        try:
            async with (
                self._pool.acquire(timeout=_TIMEOUT_S) as connection,
                connection.transaction(isolation="serializable"),
            ):
                return await _drive(connection, script)
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError) as exc:
            raise UnavailableError("database_unavailable", "the database cannot be reached") from exc


async def open_postgres(url: str) -> PostgresDatabase:
    """Connect and make the tables.

    Raises:
        UnavailableError: `database_unavailable`.
    """
    try:
        pool = await asyncpg.create_pool(url, min_size=1, max_size=16, command_timeout=_TIMEOUT_S)
        async with pool.acquire() as connection, connection.transaction():
            # Two replicas that start at once must not both create a table.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _SCHEMA_LOCK)
            for statement in schema.statements(schema.POSTGRES):
                await connection.execute(statement)
    except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise UnavailableError("database_unavailable", "cannot open the PostgreSQL database") from exc
    return PostgresDatabase(pool)


async def _drive(connection: Any, script: Script[_Result]) -> _Result:  # noqa: ANN401  # asyncpg has no types
    statement: Statement
    try:
        statement = next(script)
        while True:
            rows = await connection.fetch(_numbered(statement.sql), *statement.parameters)
            statement = script.send(rows)
    except StopIteration as end:
        result: _Result = end.value
        return result


_NUMBERED: dict[str, str] = {}


def _numbered(sql: str) -> str:
    """Return the statement with `$1, $2` for its question marks (no statement has one in a literal)."""
    known = _NUMBERED.get(sql)
    if known is None:
        count = iter(range(1, 100))
        known = _NUMBERED[sql] = re.sub(r"\?", lambda _: f"${next(count)}", sql)
    return known
