"""Reading rotated logs: the last lines, and what is appended, across a turn-over."""

import os
from collections.abc import Iterator
from pathlib import Path

from kars_controller.platforms.local.pod.logs import KEEP

_CHUNK = 1 << 16


def tail(log: Path, lines: int | None) -> bytes:
    """Return the last lines over all files of a log, None for all. Blocking; at most what rotation keeps."""
    collected = b""
    for path in _newest_first(log):
        try:
            collected = path.read_bytes() + collected
        except FileNotFoundError:
            continue
        if lines is not None and collected.count(b"\n") > lines:
            break
    if lines is None:
        return collected
    kept = collected.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept)


class Follower:
    """Reads what is appended after the moment it was made."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._file = log.open("rb")
        self._file.seek(0, os.SEEK_END)

    def read(self) -> bytes:
        """Return everything new, also across a turn-over; empty when there is nothing."""
        data = self._file.read()
        try:
            current = self._log.stat()
        except FileNotFoundError:
            return data
        if current.st_ino != os.fstat(self._file.fileno()).st_ino:
            data += self._file.read()
            self._file.close()
            self._file = self._log.open("rb")
            data += self._file.read()
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _newest_first(log: Path) -> Iterator[Path]:
    yield log
    for number in range(1, KEEP + 1):
        yield log.with_name(f"{log.name}.{number}")
