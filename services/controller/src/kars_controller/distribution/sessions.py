"""Who watches which sandbox's policy, and what each said is in force.

Kept in memory: a router says again what it enforces whenever it connects. Answers about bundles that were
never sent to this router are noise and dropped.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kars_controller.platforms.base import SandboxKey


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The last NACK of an enforcement point."""

    version: int
    digest: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Acknowledgement:
    """What a sandbox's enforcement point enforces, as it said itself."""

    connected: bool = False
    version: int = 0
    digest: str = ""
    refused: Refused | None = None
    admin_endpoint: str = ""


class Session:
    """One open stream."""

    def __init__(self, sandbox: SandboxKey) -> None:
        self.sandbox = sandbox
        self.changed = asyncio.Event()
        self.changed.set()


class PolicySessions:
    """All open streams, and the newest answer of each sandbox."""

    def __init__(self, on_change: Callable[[SandboxKey], None] = lambda _key: None) -> None:
        self._sessions: dict[SandboxKey, list[Session]] = {}
        self._answers: dict[SandboxKey, Acknowledgement] = {}
        self._on_change = on_change

    def answer(self, sandbox: SandboxKey) -> Acknowledgement:
        """Return what is known of a sandbox's enforcement point."""
        return self._answers.get(sandbox, Acknowledgement())

    def notify(self, sandbox: SandboxKey) -> None:
        """Wake the streams of a sandbox: there is a new bundle."""
        for session in self._sessions.get(sandbox, ()):
            session.changed.set()

    def forget(self, sandbox: SandboxKey) -> None:
        """Drop what a sandbox that is gone once said."""
        self._answers.pop(sandbox, None)

    @contextmanager
    def open(
        self, sandbox: SandboxKey, *, version: int, digest: str, admin_endpoint: str
    ) -> Iterator[Session]:
        """Register a stream for the length of the block; it begins with what its router enforces already."""
        session = Session(sandbox)
        self._sessions.setdefault(sandbox, []).append(session)
        self._set(
            sandbox,
            Acknowledgement(connected=True, version=version, digest=digest, admin_endpoint=admin_endpoint),
        )
        try:
            yield session
        finally:
            left = self._sessions[sandbox]
            left.remove(session)
            if not left:
                del self._sessions[sandbox]
                self._set(sandbox, replace(self.answer(sandbox), connected=False))

    def acknowledged(self, session: Session, version: int, digest: str) -> None:
        """Take an ACK."""
        known = self.answer(session.sandbox)
        self._set(session.sandbox, replace(known, version=version, digest=digest, refused=None))

    def refused(self, session: Session, refused: Refused) -> None:
        """Take a NACK; what was in force stays."""
        self._set(session.sandbox, replace(self.answer(session.sandbox), refused=refused))

    def _set(self, sandbox: SandboxKey, answer: Acknowledgement) -> None:
        if answer != self._answers.get(sandbox):
            self._answers[sandbox] = answer
            self._on_change(sandbox)
