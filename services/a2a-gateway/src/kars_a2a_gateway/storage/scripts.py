"""Transactions without an engine: a script yields statements and is sent rows, and never does anything else.

    def state_of(agent: str, task_id: str) -> Script[int | None]:
        rows = yield Statement("SELECT state FROM tasks WHERE agent = ? AND task_id = ?", (agent, task_id))
        return rows[0][0] if rows else None

An engine runs a script in one transaction, whole or not at all. So SQLite (which blocks, in a thread of its
own) and PostgreSQL (which is awaited) share every query and every decision between two queries.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Row = Sequence[Any]
Value = str | int | float | bytes | None
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Statement:
    """One SQL statement; parameters are written `?`."""

    sql: str
    parameters: tuple[Value, ...] = ()


Script = Generator[Statement, list[Row], _Result]


class Database(Protocol):
    """Runs scripts. What a script wrote survives a kill of the process when `run` returns."""

    async def run(self, make: Callable[[], Script[_Result]], *, durable: bool = True) -> _Result:
        """Run one script in one transaction.

        Args:
            make: makes the script; called again when another transaction was in the way.
            durable: what it wrote must also survive a power cut. Not needed for what the agent can say again.

        Raises:
            UnavailableError: `database_unavailable`; nothing of the script has happened.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun and close."""
        ...
