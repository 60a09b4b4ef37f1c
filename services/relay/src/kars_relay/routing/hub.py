"""Who is attached here. One connection a peer: a second one ends the first."""

import time
from collections.abc import Callable

from kars.mesh.v1 import relay_pb2
from kars_common.errors import KarsError, ResourceExhaustedError

from kars_relay.routing.session import Session

_REMEMBERED = 100_000


class Hub:
    """The attached peers of this process."""

    def __init__(self, max_connections: int, clock_s: Callable[[], float] = time.time) -> None:
        self._max = max_connections
        self._clock_s = clock_s
        self._sessions: dict[str, Session] = {}
        self._left_at_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def attach(self, peer: str, session: Session) -> None:
        """Make a session the peer's only one.

        Raises:
            ResourceExhaustedError: `too_many_connections`.
        """
        earlier = self._sessions.get(peer)
        if earlier is None and len(self._sessions) >= self._max:
            raise ResourceExhaustedError(
                "too_many_connections", f"this relay serves {self._max} peers; try another replica or later"
            )
        self._sessions[peer] = session
        if earlier is not None:
            earlier.replaced()

    def detach(self, peer: str, session: Session) -> None:
        """Forget a session that ended, unless another took its place."""
        if self._sessions.get(peer) is session:
            del self._sessions[peer]
            if len(self._left_at_s) >= _REMEMBERED:
                self._left_at_s.pop(next(iter(self._left_at_s)))
            self._left_at_s[peer] = self._clock_s()

    def end(self, peer: str, error: KarsError) -> None:
        """End a peer's connection, if it has one."""
        session = self._sessions.get(peer)
        if session is not None:
            session.end(error)

    def attached(self, peer: str) -> bool:
        """Tell whether a peer is here now."""
        return peer in self._sessions

    def left_at_s(self, peer: str) -> float | None:
        """Return when a peer left (since start); None when it never was here."""
        return self._left_at_s.get(peer)

    def notify(self, peer: str, notice: relay_pb2.Notice) -> None:
        """Tell an attached peer something; lost when it is not here."""
        session = self._sessions.get(peer)
        if session is not None:
            session.notice(notice)
