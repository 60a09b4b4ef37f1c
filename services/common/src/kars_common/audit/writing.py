"""The write end of the newest segment: whole lines or nothing, and the turn to the next file.

Knows descriptors and sizes, not what a line says; every error is the caller's to act on.
"""

import errno
import os
from collections.abc import Callable

from kars_common.audit.segments import Segment


class SegmentWriter:
    """Appends lines to one segment at a time."""

    def __init__(self, segment: Segment, size_bytes: int, started_s: float | None) -> None:
        """Open a segment for appending.

        Args:
            segment: The newest segment; its file may be missing.
            size_bytes: Its length.
            started_s: When its first record was written (wall clock); None while it is empty.
        """
        self._fd = _open(segment)
        self._size_bytes = size_bytes
        self._started_s = started_s
        self._retired: list[int] = []

    @property
    def size_bytes(self) -> int:
        """Length of the segment: where the next line begins."""
        return self._size_bytes

    def full(self, now_s: float, max_bytes: int, max_age_s: float) -> bool:
        """Tell whether the segment has records and is too large or too old for another."""
        if self._started_s is None:
            return False
        return self._size_bytes >= max_bytes or now_s - self._started_s >= max_age_s

    def write(self, line: bytes, now_s: float) -> None:
        """Hand one line to the kernel.

        Raises:
            OSError: it could not be written whole; what was written of it is taken out again when possible.
        """
        data = line + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError:
            self._cut_back()
            raise
        if written != len(data):  # a full disk shows as a short write first
            self._cut_back()
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(data)} bytes")
        self._size_bytes += written
        if self._started_s is None:
            self._started_s = now_s

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._size_bytes)
        except OSError:
            return  # recovery cuts a torn last line as well

    def sync(self) -> None:
        """Make the segment durable; blocks.

        Raises:
            OSError: it failed, and what is on disk is not known.
        """
        os.fdatasync(self._fd)

    def syncer(self) -> Callable[[], None]:
        """Return `sync` for the present file, to be called from another thread."""
        fd = self._fd
        return lambda: os.fdatasync(fd)

    def turn_to(self, segment: Segment, *, in_use: bool) -> None:
        """Go on in a new segment.

        Args:
            segment: The new one.
            in_use: Another thread may be syncing the old file: keep it open until `release`.

        Raises:
            OSError: the new file could not be made; the old one stays.
        """
        fd = _open(segment)
        if in_use:
            self._retired.append(self._fd)
        else:
            os.close(self._fd)
        self._fd = fd
        self._size_bytes = 0
        self._started_s = None

    def release(self) -> None:
        """Close old files that were kept open for another thread."""
        for fd in self._retired:
            os.close(fd)
        self._retired.clear()

    def close(self) -> None:
        """Close all files."""
        self.release()
        os.close(self._fd)


def _open(segment: Segment) -> int:
    return os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
