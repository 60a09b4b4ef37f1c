"""How many bytes of requests one door may keep in memory at once, whatever the number of its connections."""

import contextlib
from collections.abc import Iterator


class NoRoomError(Exception):
    """The door keeps as much as it may; trying again later can succeed."""


class Lease:
    """The share of one request."""

    def __init__(self, room: "ByteRoom") -> None:
        self._room = room
        self.held = 0

    def grow(self, size: int) -> None:
        """Keep so many bytes more.

        Raises:
            NoRoomError: there is no room for them.
        """
        if self._room.used + size > self._room.limit:
            raise NoRoomError
        self._room.used += size
        self.held += size


class ByteRoom:
    """A counting limit; what a request took is given back when it ends."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """Open a share for the length of the block."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.used -= lease.held
