"""What is kept about a peer: the key that it is known by, and which sessions there are with it.

A statement that is older than one that was seen is refused, and so are two keys under one serial. A key whose
safety number a person compared does not change until that person says so.
"""

from dataclasses import dataclass, field

from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import IdentityError
from kars_sdk.mesh.session import SESSION_ID_BYTES
from kars_sdk.mesh.statements import Statement


@dataclass
class PeerRecord:
    """What is kept about a peer: its pinned key, and its sessions, the one we send in first."""

    key: bytes = b""
    serial: int = 0
    had_kem: bool = False
    verified: bool = False
    sessions: list[bytes] = field(default_factory=list)

    def learn(self, statement: Statement, *, post_quantum: bool) -> None:
        """Take up what a checked statement says about the peer.

        Raises:
            IdentityError: `statement_rollback`, `identity_key_changed`.
        """
        if statement.serial < self.serial:
            raise IdentityError(
                "statement_rollback", f"an older statement about {statement.peer} came after a newer"
            )
        if self.key not in {b"", statement.identity_key}:
            if self.verified:
                raise IdentityError(
                    "identity_key_changed",
                    f"{statement.peer} has another key than the one whose safety number a person compared: "
                    "compare the new number, or forget the old",
                )
            if statement.serial == self.serial:
                raise IdentityError("statement_rollback", f"two keys are stated for {statement.peer} at once")
        self.key, self.serial = statement.identity_key, statement.serial
        self.had_kem = self.had_kem or post_quantum

    def dump(self) -> bytes:
        """Return the record's bytes."""
        writer = Writer().variable(self.key).u64(self.serial).u8(self.had_kem).u8(self.verified)
        writer.u8(len(self.sessions))
        for session in self.sessions:
            writer.raw(session)
        return writer.bytes()

    @classmethod
    def load(cls, record: bytes | None) -> "PeerRecord":
        """Read a record; an empty one for a peer that nothing is known of."""
        if record is None:
            return cls()
        reader = Reader(record, what="peer record", max_bytes=1024)
        key, serial, had_kem, verified = reader.variable(32), reader.u64(), reader.flag(), reader.flag()
        return cls(key, serial, had_kem, verified, [reader.raw(SESSION_ID_BYTES) for _ in range(reader.u8())])
