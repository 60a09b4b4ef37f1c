"""Bring ledgers back from the audit log: the newest snapshot, then every record after it.

What was admitted and never settled (the router was killed) is charged at its
reserved maximum and closed with a record of its own. A kill never refunds.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from kars_router.budget.gate import BUDGET_CODES
from kars_router.budget.ledger import Ledger

SNAPSHOT = "snapshot.json"


class Journal(Protocol):
    """The part of the audit log that replay needs."""

    @property
    def size(self) -> int:
        """Number of records."""

    @property
    def first_seq(self) -> int:
        """Oldest record that was not pruned."""

    def records(self, start_seq: int = 0) -> Iterable[Mapping[str, Any]]:
        """Yield records from a sequence number on."""

    def append(self, type: str, fields: Mapping[str, object]) -> int:  # noqa: A002 - the log's own name for it
        """Write one record."""

    async def durable(self, seq: int) -> None:
        """Wait until a record is on disk."""


class LedgerJournalError(RuntimeError):
    """The ledger cannot be rebuilt; starting without it would refund what was spent."""

    reason = "ledger_unrecoverable"


class LedgerJournal:
    """Snapshots and replay for the ledgers of all doors, by sandbox."""

    def __init__(self, directory: Path, log: Journal, ledgers: Mapping[str, Ledger]) -> None:
        self._directory = directory
        self._log = log
        self._ledgers = ledgers

    def recover(self) -> int:
        """Rebuild the ledgers; returns how many abandoned calls were charged. Blocks: reads files.

        Raises:
            LedgerJournalError: records that the snapshot needs were pruned.
            OSError: the directory cannot be used.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        start = max(self._restore(), self._log.first_seq if self._log.size else 0)
        for record in self._log.records(start):
            self._replay(record)
        return self._close_abandoned()

    async def save(self) -> None:
        """Write a snapshot that stands for every record so far.

        Raises:
            OSError: the file cannot be written; the journal itself is not touched.
            UnavailableError: the records it stands for cannot be made durable.
        """
        seq = self._log.size
        if seq:
            # Taken together with the number, before waiting: later records are replayed on top of it.
            doors = {sandbox: ledger.snapshot() for sandbox, ledger in self._ledgers.items()}
            await self._log.durable(seq - 1)
            _replace(self._directory / SNAPSHOT, orjson.dumps({"v": 1, "seq": seq, "doors": doors}))

    def _restore(self) -> int:
        """Load the snapshot; returns the first record to replay. An unreadable one: replay everything."""
        try:
            saved = orjson.loads((self._directory / SNAPSHOT).read_bytes())
            seq = _fitting_seq(saved, self._log.size)
            for sandbox, ledger in self._ledgers.items():
                if sandbox in saved["doors"]:
                    ledger.restore(saved["doors"][sandbox])
        except FileNotFoundError:
            seq = 0
        except (ValueError, KeyError, TypeError, AttributeError):
            for ledger in self._ledgers.values():
                ledger.restore({"day": "", "used_day": 0, "used_month": 0, "refused": 0, "open": {}})
            seq = 0
        if seq < self._log.first_seq:
            raise LedgerJournalError(f"records {seq} to {self._log.first_seq} are needed and were pruned")
        return seq

    def _replay(self, record: Mapping[str, Any]) -> None:
        ledger = self._ledgers.get(str(record.get("sandbox")))
        if ledger is None:
            return
        kind, call = record.get("type"), str(record.get("call"))
        if kind == "call.admitted" and "reserved" in record:
            ledger.hold(call, int(record["reserved"]), str(record["day"]))
        elif kind == "call.settled":
            ledger.settle(call, int(record.get("charged", 0)))
        elif kind == "call.denied":
            ledger.settle(call, 0)
            if record.get("reason") in BUDGET_CODES:
                ledger.refused_on(str(record.get("time", ""))[:10])

    def _close_abandoned(self) -> int:
        closed = 0
        for sandbox, ledger in self._ledgers.items():
            for call, reserved in ledger.open_calls().items():
                fields = {"call": call, "sandbox": sandbox, "ending": "abandoned", "charged": reserved}
                self._log.append("call.settled", {**fields, "status": 0, "estimated": True})
                ledger.settle(call, reserved)
                closed += 1
        return closed


def _fitting_seq(saved: Mapping[str, Any], size: int) -> int:
    seq = int(saved["seq"])
    if saved["v"] != 1 or not 0 <= seq <= size:
        raise ValueError("the snapshot does not fit the log")
    return seq


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
