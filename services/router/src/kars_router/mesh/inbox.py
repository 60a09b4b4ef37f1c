"""Frames on their way to the agent: bounded, and free of what policy does not let in.

A delivery of a peer that may not write to this sandbox (any more) is dropped here. The agent acknowledges
cumulatively and cannot know of it, so dropped numbers are acknowledged in its place, in turn.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kars.mesh.v1 import relay_pb2

MAX_WAITING_BYTES = 4 * 1024 * 1024


@dataclass(kw_only=True)
class Acknowledgements:
    """What was delivered on one stream and is not acknowledged yet, in order."""

    through: int = 0
    _open: deque[tuple[int, bool]] = field(default_factory=deque)

    def delivered(self, last_seq: int, *, dropped: bool) -> None:
        """Note a delivery by its last number."""
        self._open.append((last_seq, dropped))

    def acknowledge(self, seq: int) -> int:
        """Take the agent's word; returns up to where the relay may forget, 0 for nothing new."""
        before = self.through
        self.through = max(self.through, seq)
        while self._open and (self._open[0][1] or self._open[0][0] <= self.through):
            self.through = max(self.through, self._open.popleft()[0])
        return self.through if self.through > before else 0


class Inbox:
    """One reader, one writer. The writer waits while too much waits for the reader."""

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self.closed = False

    async def put(self, frame: bytes) -> None:
        """Append a frame; waits for room, and drops it when the inbox was closed."""
        while self._frames and self._bytes + len(frame) > self._max_bytes and not self.closed:
            self._room.clear()
            await self._room.wait()
        if self.closed:
            return
        self._frames.append(frame)
        self._bytes += len(frame)
        self._changed.set()

    async def get(self) -> bytes | None:
        """Return the next frame; None when there will be none."""
        while not self._frames:
            if self.closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        self._room.set()
        return frame

    def close(self) -> None:
        """Let the reader come to an end, after what waits."""
        self.closed = True
        self._changed.set()
        self._room.set()


def split(
    deliveries: list[relay_pb2.Delivery], may_receive: Callable[[str], bool]
) -> tuple[list[relay_pb2.Delivery], list[relay_pb2.Delivery]]:
    """Return what may pass and what may not."""
    kept: list[relay_pb2.Delivery] = []
    dropped: list[relay_pb2.Delivery] = []
    for delivery in deliveries:
        (kept if may_receive(delivery.sender) else dropped).append(delivery)
    return kept, dropped
