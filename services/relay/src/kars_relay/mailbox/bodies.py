"""The bodies of runs: appended to segment files, beside the database that says where each is.

A body is written once, sequentially, and read by place; a segment goes when nothing in it is needed any
more. Durable means: `append`, then `sync`, and only then the commit of the row that names the place. A
segment whose greater part is dead is worth copying (`sparse`), so that one envelope for an absent peer
holds no disk. Files are never appended to after a restart; what no row names is removed.

`append` and `sync` belong to the committing thread, `read` to any, the rest to the event loop.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kars_common import files

SEGMENT_BYTES = 64 * 1024 * 1024
_IOV = 512
_SUFFIX = ".seg"


@dataclass(slots=True)
class _Segment:
    size: int = 0
    live_runs: int = 0
    live_bytes: int = 0


class BodyFiles:
    """All segments of one store."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segments: dict[int, _Segment] = {}
        self._readers: dict[int, int] = {}
        self._current = 0
        self._fd = -1
        self._end = 0

    # --- the committing thread ----------------------------------------------------------------------------

    def append(self, bodies: Sequence[bytes]) -> tuple[int, list[int]]:
        """Write bodies; return the segment and the place of each in it. Not durable before `sync`.

        Raises:
            OSError: the disk is full or failed; nothing may be committed that names these places.
        """
        if self._fd < 0 or self._end >= self._segment_bytes:
            self._turn()
        places: list[int] = []
        for body in bodies:
            places.append(self._end)
            self._end += len(body)
        for start in range(0, len(bodies), _IOV):
            _write_all(self._fd, bodies[start : start + _IOV])
        return self._current, places

    def sync(self) -> None:
        """Make what was appended durable."""
        os.fdatasync(self._fd)

    def _turn(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._current += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path(self._current), flags, 0o600)
        files.sync_directory(self._directory)
        self._end = 0

    # --- any thread -----------------------------------------------------------------------------------------

    def read(self, segment: int, place: int, size: int) -> bytes:
        """Return a body.

        Raises:
            OSError: it is not there.
        """
        descriptor = self._readers.get(segment)
        if descriptor is None:
            descriptor = self._readers[segment] = os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)
        body = os.pread(descriptor, size, place)
        if len(body) != size:
            raise OSError(f"segment {segment} ends before {place + size}")
        return body

    # --- the event loop -------------------------------------------------------------------------------------

    def recover(self, rows: Iterable[tuple[int, int, int]]) -> list[int]:
        """Account for committed rows `(segment, place, size)`; return segments that rows name and lack.

        Removes what no row names, and begins a new segment with the next `append`.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed: dict[int, int] = {}
        for segment, place, size in rows:
            self.keep(segment, size)
            needed[segment] = max(needed.get(segment, 0), place + size)
        found = {int(path.stem): path for path in self._directory.glob(f"*{_SUFFIX}") if path.stem.isdigit()}
        for number, path in found.items():
            if number in needed:
                self._segments[number].size = path.stat().st_size
            else:
                path.unlink()
        self._current = max((*found, *needed), default=0)
        return [number for number, end in needed.items() if self._segments[number].size < end]

    def keep(self, segment: int, size: int) -> None:
        """Account for a run that a segment holds."""
        held = self._segments.setdefault(segment, _Segment())
        held.live_runs += 1
        held.live_bytes += size

    def grown(self, segment: int, size: int) -> None:
        """Account for bytes that were written, needed or not."""
        self._segments.setdefault(segment, _Segment()).size += size

    def release(self, segment: int, size: int) -> None:
        """Account for a run that is not needed any more."""
        held = self._segments[segment]
        held.live_runs -= 1
        held.live_bytes -= size

    def remove_dead(self) -> None:
        """Remove segments that nothing needs; call when the commit that let go of them is durable."""
        dead = [
            number
            for number, held in self._segments.items()
            if held.live_runs == 0 and number != self._current
        ]
        for number in dead:
            del self._segments[number]
            descriptor = self._readers.pop(number, None)
            if descriptor is not None:
                os.close(descriptor)
            self._path(number).unlink(missing_ok=True)

    def sparse(self, share: float) -> int | None:
        """Return a closed segment of which less than `share` is needed; the emptiest, or None."""
        found = [
            (held.live_bytes / held.size, number)
            for number, held in self._segments.items()
            if number != self._current and held.size and held.live_runs
        ]
        emptiest = min(found, default=(1.0, 0))
        return emptiest[1] if emptiest[0] < share else None

    def close(self) -> None:
        """Close all files."""
        for descriptor in (*self._readers.values(), *([self._fd] if self._fd >= 0 else ())):
            os.close(descriptor)
        self._readers.clear()
        self._fd = -1

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}{_SUFFIX}"


def _write_all(descriptor: int, bodies: Sequence[bytes]) -> None:
    written = os.writev(descriptor, bodies)
    wanted = sum(map(len, bodies))
    if written < wanted:  # seldom: a signal, or a disk that is about to be full
        rest = memoryview(b"".join(bodies))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
