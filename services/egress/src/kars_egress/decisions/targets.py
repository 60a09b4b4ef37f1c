"""What each sandbox learned and was refused: bounded, most frequent first.

A sandbox cannot fill the table of another: each has its own room, and when that is full new targets are
counted but not kept.
"""

from dataclasses import dataclass, field

MAX_TARGETS = 1024


@dataclass(slots=True)
class Seen:
    """One target and how often it was met."""

    host: str
    port: int
    reason: str
    count: int
    first_s: float
    last_s: float


@dataclass(slots=True)
class _Room:
    seen: dict[tuple[str, int, str], Seen] = field(default_factory=dict)
    left_out: int = 0


class Targets:
    """One table (learned, or blocked) for all sandboxes."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}

    def note(self, sandbox: str, host: str, port: int, reason: str, time_s: float) -> None:
        """Count one request."""
        room = self._rooms.setdefault(sandbox, _Room())
        key = (host, port, reason)
        known = room.seen.get(key)
        if known is not None:
            known.count += 1
            known.last_s = max(known.last_s, time_s)
        elif len(room.seen) < MAX_TARGETS:
            room.seen[key] = Seen(host, port, reason, 1, time_s, time_s)
        else:
            room.left_out += 1

    def most_frequent(self, sandbox: str, limit: int) -> tuple[list[Seen], int]:
        """Return what one sandbox met most, and how many requests were for targets not kept."""
        room = self._rooms.get(sandbox, _Room())
        ordered = sorted(room.seen.values(), key=lambda seen: (-seen.count, seen.host, seen.port))
        return ordered[:limit], room.left_out

    def forget(self, sandbox: str) -> None:
        """Drop one sandbox's room."""
        self._rooms.pop(sandbox, None)
