"""The write end of the newest segment: whole lines or nothing, and the turn to the next file.

A line may be staged: it stays in memory until the next line that is not, or the next sync, and goes to the
kernel with it. One system call then carries the records of many callers who wait for the same sync anyway.

Knows descriptors and sizes, not what a line says; every error is the caller's to act on.
"""

import errno
import os
from collections.abc import Callable

from kars_common.audit.segments import Segment

_MAX_STAGED_BYTES = 256 * 1024


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
        self._written_bytes = size_bytes
        self._started_s = started_s
        self._staged = bytearray()
        self._retired: list[int] = []

    @property
    def size_bytes(self) -> int:
        """Length of the segment, staged lines included: where the next line begins."""
        return self._written_bytes + len(self._staged)

    def full(self, now_s: float, max_bytes: int, max_age_s: float) -> bool:
        """Tell whether the segment has records and is too large or too old for another."""
        if self._started_s is None:
            return False
        return self.size_bytes >= max_bytes or now_s - self._started_s >= max_age_s

    def write(self, line: bytes, now_s: float, *, staged: bool = False) -> None:
        """Hand one line, and what is staged before it, to the kernel; or stage it.

        Raises:
            OSError: it could not be written whole; what was written of it is taken out again when possible.
        """
        self._staged += line
        self._staged += b"\n"
        if self._started_s is None:
            self._started_s = now_s
        if not staged or len(self._staged) > _MAX_STAGED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what is staged to the kernel.

        Raises:
            OSError: as for `write`; the staged lines are gone.
        """
        if not self._staged:
            return
        data, self._staged = self._staged, bytearray()
        try:
            written = os.write(self._fd, data)
        except OSError:
            self._cut_back()
            raise
        if written != len(data):  # a full disk shows as a short write first
            self._cut_back()
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(data)} bytes")
        self._written_bytes += written

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._written_bytes)
        except OSError:
            return  # recovery cuts a torn last line as well

    def sync(self) -> None:
        """Make the segment durable, staged lines included; blocks.

        Raises:
            OSError: it failed, and what is on disk is not known.
        """
        self.flush()
        os.fdatasync(self._fd)

    def syncer(self) -> Callable[[], None]:
        """Flush, and return what makes the present file durable, to be called from another thread.

        Raises:
            OSError: as for `flush`.
        """
        self.flush()
        fd = self._fd
        return lambda: os.fdatasync(fd)

    def turn_to(self, segment: Segment, *, in_use: bool) -> None:
        """Go on in a new segment; the old one was synced, so nothing is staged.

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
        self._written_bytes = 0
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
