"""Witnessing: somebody else remembers how long the log was.

A log alone can be cut at its tail, or rewritten by whoever holds its key. The witness (the controller)
cosigns a head only when a proof shows that it extends the last head it cosigned for the same origin, and
keeps that head. Both sides are here: `Witness` decides and signs, `WitnessedLog` sends a log's heads and
keeps the answers. How they reach each other is a callable; nothing here knows of gRPC.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kars_common.audit import merkle, notes, segments
from kars_common.audit.log import AuditLog
from kars_common.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidInputError,
    KarsError,
    PermissionDeniedError,
    UnavailableError,
)

_MAX_PROOF_HASHES = 128
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WitnessedHead:
    """What a witness remembers of one log."""

    log_public_key: bytes
    size: int
    root: bytes
    signed_note: bytes
    """The checkpoint with the log's signature and this witness's."""


class WitnessStore(Protocol):
    """Where a witness keeps one head for each origin; durable when `put` returns."""

    def get(self, origin: str) -> WitnessedHead | None:
        """Return the last head of an origin."""
        ...

    def put(self, origin: str, head: WitnessedHead) -> None:
        """Replace the head of an origin."""
        ...


class MemoryWitnessStore:
    """Forgets everything at the end of the process; for tests and single runs."""

    def __init__(self) -> None:
        self._heads: dict[str, WitnessedHead] = {}

    def get(self, origin: str) -> WitnessedHead | None:
        """Return the last head of an origin."""
        return self._heads.get(origin)

    def put(self, origin: str, head: WitnessedHead) -> None:
        """Replace the head of an origin."""
        self._heads[origin] = head


class Witness:
    """Cosigns heads that extend what it saw before. One caller at a time for each origin."""

    def __init__(
        self,
        name: str,
        signer: Ed25519PrivateKey,
        store: WitnessStore,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """Create one.

        Args:
            name: The key name in cosignatures, for instance `kars.local/svc/controller/witness`.
            signer: A key that signs nothing else.
            store: What was cosigned before.
            clock_s: The wall clock.
        """
        self.name = notes.check_name(name)
        self._signer = signer
        self._store = store
        self._clock_s = clock_s

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that verifies the cosignatures."""
        return self._signer.public_key()

    def witnessed(self, origin: str) -> WitnessedHead | None:
        """Return the last head that was cosigned for an origin."""
        return self._store.get(origin)

    def cosign(
        self, origin: str, old_size: int, proof: list[bytes], signed_note: bytes, log_public_key: bytes
    ) -> bytes:
        """Return the cosignature line for a head, and remember the head first.

        Args:
            origin: The only origin that the caller's identity may speak for.
            old_size: What the caller thinks was cosigned last; 0 for nothing.
            proof: Consistency proof from `old_size`.
            signed_note: The head, signed by the log.
            log_public_key: The log's key (32 bytes); the origin's first call pins it.

        Raises:
            InvalidInputError: the note or key is malformed, or not signed by the key.
            PermissionDeniedError: `checkpoint_key_mismatch`, another key was pinned.
            ConflictError: `checkpoint_stale`, with the right `old_size` in the metadata.
            FailedPreconditionError: `checkpoint_inconsistent`: the log was rewritten or cut.
        """
        head = notes.open_checkpoint(signed_note, _public_key(log_public_key), origin)
        last = self._store.get(origin)
        if last is not None and last.log_public_key != log_public_key:
            raise PermissionDeniedError("checkpoint_key_mismatch", f"another key is pinned for {origin!r}")
        known_size = 0 if last is None else last.size
        if old_size != known_size:
            raise ConflictError(
                "checkpoint_stale",
                f"last head of {origin!r} has size {known_size}, not {old_size}",
                metadata={"old_size": str(known_size)},
            )
        known_root = merkle.EMPTY_ROOT if last is None else last.root
        if len(proof) > _MAX_PROOF_HASHES or not merkle.verify_consistency(
            known_size, known_root, head.size, head.root, proof
        ):
            raise FailedPreconditionError(
                "checkpoint_inconsistent",
                f"head of size {head.size} does not extend the one of size {known_size}",
            )
        line = notes.cosign(signed_note, self.name, self._signer, int(self._clock_s()))
        kept = notes.add_signature(notes.keep_signature(signed_note, origin), line)
        self._store.put(
            origin,
            WitnessedHead(log_public_key=log_public_key, size=head.size, root=head.root, signed_note=kept),
        )
        return line


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a log asks a witness to cosign."""

    old_size: int
    proof: list[bytes]
    signed_note: bytes
    log_public_key: bytes


Submit = Callable[[Submission], Awaitable[bytes]]
"""Sends a submission and returns the cosignature line; raises KarsError as `Witness.cosign` does."""


class WitnessedLog:
    """Gets the heads of one log cosigned and keeps the newest cosigned one beside the log."""

    def __init__(
        self, log: AuditLog, submit: Submit, witness_name: str, witness_key: Ed25519PublicKey
    ) -> None:
        """Create one; the size cosigned last is read from the log's directory."""
        self._log = log
        self._submit = submit
        self._name = witness_name
        self._key = witness_key
        self.witnessed_size = self._stored_size()

    def _stored_size(self) -> int:
        try:
            note = (self._log.directory / segments.WITNESSED).read_bytes()
            return notes.open_cosignature(note, self._name, self._key).checkpoint.size
        except (FileNotFoundError, InvalidInputError):  # another witness before: the new one tells its size
            return 0

    async def witness_once(self) -> int:
        """Get the durable head cosigned and return its size. The log must outlive the call.

        Raises:
            FailedPreconditionError: `checkpoint_inconsistent`: this log contradicts what the witness saw.
            KarsError: whatever else `submit` raised, or a cosignature that does not verify.
        """
        try:
            return await self._attempt(self.witnessed_size)
        except ConflictError as exc:
            if exc.reason != "checkpoint_stale" or not exc.metadata.get("old_size", "").isdecimal():
                raise
            old_size = int(exc.metadata["old_size"])
        if old_size > self._log.durable_size:
            raise FailedPreconditionError(
                "checkpoint_inconsistent",
                f"the witness saw {old_size} records, this log has {self._log.durable_size}",
            )
        return await self._attempt(old_size)

    async def _attempt(self, old_size: int) -> int:
        note = self._log.checkpoint()
        size = self._log.durable_size
        submission = Submission(
            old_size=old_size,
            proof=self._log.consistency_proof(old_size, size),
            signed_note=note,
            log_public_key=notes.public_bytes(self._log.public_key),
        )
        line = await self._submit(submission)
        cosigned = notes.add_signature(note, line)
        notes.open_cosignature(cosigned, self._name, self._key)
        self._log.store_witnessed(cosigned)
        self.witnessed_size = size
        return size

    async def run(self, interval_s: float = 10.0) -> None:
        """Get each new durable head cosigned, at most once an interval, until cancelled.

        An unreachable witness is tried again; that the log contradicts the witness ends the run.

        Raises:
            FailedPreconditionError: `checkpoint_inconsistent`.
            UnavailableError: `audit_unavailable`: the log itself failed.
        """
        while True:
            await self._log.wait_durable_beyond(self.witnessed_size)
            try:
                await self.witness_once()
            except FailedPreconditionError:
                raise
            except KarsError as exc:
                if self._log.failed:
                    raise UnavailableError("audit_unavailable", "audit log failed") from exc
                _logger.warning("audit checkpoint was not witnessed", extra={"reason": exc.reason})
            await asyncio.sleep(interval_s)


def _public_key(raw: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as exc:
        raise InvalidInputError("log_public_key_malformed", "expected a raw Ed25519 key of 32 bytes") from exc
