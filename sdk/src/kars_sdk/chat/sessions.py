"""Conversations by name: bounded in number, the one unused longest is forgotten first."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass
class Session:
    """One conversation; `state` belongs to the adapter (its framework's message history)."""

    name: str
    state: object = None
    busy: bool = False


class Sessions:
    """The conversations of one agent."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, name: str) -> Session:
        """Return the session of a name, a new one if it is unknown or was forgotten."""
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(name)
            self._forget()
        self._sessions.move_to_end(name)
        return session

    def __len__(self) -> int:
        return len(self._sessions)

    def _forget(self) -> None:
        for name in list(self._sessions):
            if len(self._sessions) <= self._limit:
                return
            if not self._sessions[name].busy and name != next(reversed(self._sessions)):
                del self._sessions[name]
