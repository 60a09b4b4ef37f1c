"""The witness cosigns growth and nothing else; the client keeps what it said."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.audit import (
    AuditLog,
    MemoryWitnessStore,
    Submission,
    Witness,
    WitnessedLog,
    open_checkpoint,
    open_cosignature,
)
from kars_common.audit.notes import Checkpoint, public_bytes, sign_checkpoint
from kars_common.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidInputError,
    KarsError,
    PermissionDeniedError,
    UnavailableError,
)

ORIGIN = "kars.local/ns/team-a/sandbox/quickstart"
OpenLog = Callable[..., AuditLog]


class Wire:
    """A witness behind a wire that a test can cut and look at."""

    def __init__(self) -> None:
        self.witness = Witness(
            "kars.local/witness", Ed25519PrivateKey.generate(), MemoryWitnessStore(), lambda: 1e9
        )
        self.submissions: list[Submission] = []
        self.failures: list[KarsError] = []

    async def submit(self, submission: Submission) -> bytes:
        self.submissions.append(submission)
        if self.failures:
            raise self.failures.pop()
        return self.witness.cosign(
            ORIGIN, submission.old_size, submission.proof, submission.signed_note, submission.log_public_key
        )

    def client(self, log: AuditLog) -> WitnessedLog:
        return WitnessedLog(log, self.submit, self.witness.name, self.witness.public_key)


async def grow(log: AuditLog, records: int) -> None:
    for i in range(records):
        log.append("a", {"n": i})
    await log.durable(log.size - 1)


async def test_growing_log_is_cosigned_again_and_again(open_log: OpenLog, directory: Path) -> None:
    wire, log = Wire(), open_log()
    client = wire.client(log)
    for records in (1, 2, 30, 1):
        await grow(log, records)
        assert await client.witness_once() == log.size
    note = (directory / "witnessed").read_bytes()
    assert open_cosignature(note, wire.witness.name, wire.witness.public_key).checkpoint.size == 34
    assert open_checkpoint(note, log.public_key, ORIGIN).size == 34
    await log.close()


async def test_restarted_client_goes_on_from_the_stored_head(open_log: OpenLog) -> None:
    wire, log = Wire(), open_log()
    await grow(log, 5)
    await wire.client(log).witness_once()
    await log.close()
    log = open_log()
    await grow(log, 5)
    await wire.client(log).witness_once()
    assert [s.old_size for s in wire.submissions] == [0, 5]
    await log.close()


async def test_client_that_forgot_learns_the_size_from_the_witness(
    open_log: OpenLog, directory: Path
) -> None:
    wire, log = Wire(), open_log()
    await grow(log, 5)
    await wire.client(log).witness_once()
    (directory / "witnessed").unlink()
    await grow(log, 5)
    assert await wire.client(log).witness_once() == 10
    assert [s.old_size for s in wire.submissions] == [0, 0, 5]
    await log.close()


async def test_log_restored_from_an_old_copy_is_refused(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    wire, log = Wire(), open_log()
    await grow(log, 20)
    await wire.client(log).witness_once()
    await log.close()
    younger = AuditLog.open(directory.with_name("restored"), ORIGIN, key)
    await grow(younger, 10)
    with pytest.raises(FailedPreconditionError) as caught:
        await wire.client(younger).witness_once()
    assert caught.value.reason == "checkpoint_inconsistent"
    await grow(younger, 20)  # grown beyond, but with other records
    with pytest.raises(FailedPreconditionError) as caught:
        await wire.client(younger).witness_once()
    assert caught.value.reason == "checkpoint_inconsistent"
    await younger.close()


def note_of(size: int, key: Ed25519PrivateKey, origin: str = ORIGIN) -> bytes:
    return sign_checkpoint(Checkpoint(origin=origin, size=size, root=bytes([size]) * 32), key)


def test_witness_refuses_forks_other_keys_other_origins_and_guesses(key: Ed25519PrivateKey) -> None:
    witness = Wire().witness
    raw = public_bytes(key.public_key())
    witness.cosign(ORIGIN, 0, [], note_of(8, key), raw)
    other = Ed25519PrivateKey.generate()
    attacks: list[tuple[type[KarsError], str, int, list[bytes], bytes, bytes]] = [
        (FailedPreconditionError, "checkpoint_inconsistent", 8, [], note_of(9, key), raw),
        (FailedPreconditionError, "checkpoint_inconsistent", 8, [bytes(32)] * 4, note_of(9, key), raw),
        (FailedPreconditionError, "checkpoint_inconsistent", 8, [bytes(32)] * 999, note_of(9, key), raw),
        (FailedPreconditionError, "checkpoint_inconsistent", 8, [], note_of(4, key), raw),
        (ConflictError, "checkpoint_stale", 0, [], note_of(9, key), raw),
        (ConflictError, "checkpoint_stale", 9, [], note_of(9, key), raw),
        (
            PermissionDeniedError,
            "checkpoint_key_mismatch",
            8,
            [],
            note_of(8, other),
            public_bytes(other.public_key()),
        ),
        (InvalidInputError, "note_unsigned", 8, [], note_of(9, other), raw),
        (InvalidInputError, "note_unsigned", 0, [], note_of(9, key, "kars.local/ns/b/sandbox/x"), raw),
        (InvalidInputError, "log_public_key_malformed", 8, [], note_of(9, key), b"short"),
        (InvalidInputError, "note_malformed", 8, [], b"not a note", raw),
    ]
    for error, reason, old_size, proof, note, public_key in attacks:
        with pytest.raises(error) as caught:
            witness.cosign(ORIGIN, old_size, proof, note, public_key)
        assert caught.value.reason == reason
    head = witness.witnessed(ORIGIN)
    assert head is not None
    assert head.size == 8


def test_witness_keeps_no_foreign_signature_lines(key: Ed25519PrivateKey) -> None:
    witness = Wire().witness
    note = note_of(3, key) + "— somebody.else AAAAAAAAAAAA\n".encode()
    witness.cosign(ORIGIN, 0, [], note, public_bytes(key.public_key()))
    head = witness.witnessed(ORIGIN)
    assert head is not None
    assert b"somebody" not in head.signed_note


async def test_wrong_cosignature_is_not_stored(open_log: OpenLog, directory: Path) -> None:
    wire, log = Wire(), open_log()
    impostor = Witness(wire.witness.name, Ed25519PrivateKey.generate(), MemoryWitnessStore())

    async def submit(s: Submission) -> bytes:
        return impostor.cosign(ORIGIN, s.old_size, s.proof, s.signed_note, s.log_public_key)

    await grow(log, 1)
    with pytest.raises(InvalidInputError):
        await WitnessedLog(log, submit, wire.witness.name, wire.witness.public_key).witness_once()
    assert not (directory / "witnessed").exists()
    await log.close()


async def test_run_tries_again_when_the_witness_was_away(open_log: OpenLog) -> None:
    wire, log = Wire(), open_log()
    wire.failures = [UnavailableError("channel_down", "no connection")] * 3
    client = wire.client(log)
    task = asyncio.create_task(client.run(interval_s=0.01))
    await grow(log, 3)
    async with asyncio.timeout(5):
        while client.witnessed_size != 3:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(wire.submissions) == 4
    await log.close()
