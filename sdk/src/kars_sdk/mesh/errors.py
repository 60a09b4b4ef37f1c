"""What the mesh refuses, grouped by what the caller should do about it.

Every error carries a stable `reason`; programs read that, people read the text. No text carries a key, a
plaintext or more of a foreign byte string than its length.
"""


class MeshError(Exception):
    """Root of everything that the mesh raises on purpose."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class MalformedError(MeshError):
    """Bytes are no message of this protocol. Drop them; nothing has changed."""


class ForgedError(MeshError):
    """A signature or an authentication tag does not fit. Drop the message; nothing has changed."""


class ReplayedError(MeshError):
    """It was handled before. Acknowledge it and drop it; nothing has changed."""


class SkippedTooFarError(MeshError):
    """More messages are missing before this one than a session keeps keys for; nothing has changed."""


class CloneSuspectedError(MeshError):
    """The peer used one message number twice: its state was copied or rolled back. Tell a person."""


class HandshakeError(MeshError):
    """A session cannot be started with these keys. Fetch fresh prekeys, or change policy."""


class NoSessionError(MeshError):
    """There is no session with this peer (any more). Start one."""


class IdentityError(MeshError):
    """A name, a key or the statement that binds them is not believed. Do not talk to this peer."""


class KnockRefusedError(MeshError):
    """A receiver's policy refused a KNOCK: ours, or a peer's (with the signed rejection to send back)."""

    def __init__(
        self, reason: str, message: str, *, retry_after_s: float = 0, peer: str = "", rejection: bytes = b""
    ) -> None:
        super().__init__(reason, message)
        self.retry_after_s = retry_after_s
        self.peer = peer
        self.rejection = rejection


class StoreError(MeshError):
    """The state on disk cannot be used: locked, rolled back, damaged, or sealed under another key."""


class TransportError(MeshError):
    """Relay or registry could not be reached, or refused. Retried by the client unless `fatal`."""

    def __init__(self, reason: str, message: str, *, fatal: bool = False, retry_after_s: float = 0) -> None:
        super().__init__(reason, message)
        self.fatal = fatal
        self.retry_after_s = retry_after_s


class PayloadError(MeshError):
    """An application payload breaks a rule: too large, a bad name, a hash that does not fit."""
