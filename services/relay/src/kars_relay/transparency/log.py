"""Registrations as leaves of an append-only Merkle log (`kars_common.audit`).

A leaf holds hashes and the key, not free text: nothing in it may be changed by the redaction that every audit
log does, because clients compare it with the statement they were given. A client that remembers one head and
asks for consistency with the next one notices a registry that tells two stories.
"""

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.audit import AuditLog, verifier_key

from kars_relay.identity import Statement


class RegistrationLog:
    """Appends registrations and proves them."""

    def __init__(self, directory: Path, trust_domain: str, signer: Ed25519PrivateKey) -> None:
        """Open or create the log; blocks for one read.

        Raises:
            KarsError: as `AuditLog.open`.
        """
        self.origin = f"{trust_domain}/mesh-registrations"
        self._log = AuditLog.open(directory, self.origin, signer)

    @property
    def verifier_key(self) -> str:
        """The log's key in C2SP form."""
        return verifier_key(self.origin, self._log.public_key)

    async def registered(self, statement: Statement) -> int:
        """Log a registration and return its index once it is durable."""
        return await self._append("mesh.registered", statement, {})

    async def rotated(self, statement: Statement, *, continuous: bool) -> int:
        """Log a change of key and return its index once it is durable."""
        return await self._append("mesh.rotated", statement, {"continuous": continuous})

    def record(self, index: int) -> bytes:
        """Return a leaf's bytes."""
        return next(iter(self._log.lines(index, index + 1)))

    def head(self) -> bytes:
        """Return the newest signed head."""
        return self._log.checkpoint()

    def inclusion(self, index: int, tree_size: int) -> tuple[int, list[bytes]]:
        """Return tree size and audit path of a leaf; size 0 means the newest.

        Raises:
            OutOfRangeError: `audit_seq_out_of_range`, `audit_size_out_of_range`.
        """
        size = tree_size or self._log.durable_size
        return size, self._log.inclusion_proof(index, size)

    def consistency(self, old_size: int, new_size: int) -> tuple[int, list[bytes]]:
        """Return new size and proof that the log only grew; size 0 means the newest.

        Raises:
            OutOfRangeError: `audit_size_out_of_range`.
        """
        size = new_size or self._log.durable_size
        return size, self._log.consistency_proof(old_size, size)

    async def run(self) -> None:
        """Sign heads for ever."""
        await self._log.run()

    async def close(self) -> None:
        """Make everything durable and close."""
        await self._log.close()

    async def _append(self, kind: str, statement: Statement, more: dict[str, bool]) -> int:
        index = self._log.append(
            kind,
            {
                "peer_sha256": hashlib.sha256(str(statement.peer).encode()).hexdigest(),
                "statement_sha256": hashlib.sha256(statement.signed.statement).hexdigest(),
                "identity_key": statement.identity_key_raw.hex(),
                "serial": statement.serial,
                **more,
            },
        )
        await self._log.durable(index)
        return index
