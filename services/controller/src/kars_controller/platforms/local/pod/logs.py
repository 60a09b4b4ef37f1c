"""A container's output on disk, bounded: the current file and a few older ones."""

import os
from pathlib import Path

MAX_BYTES = 10 << 20
KEEP = 3
"""Older files kept beside the current one."""


class RotatingLog:
    """Appends bytes; turns the file over before it would grow beyond its bound."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append data, whole."""
        if self._size and self._size + len(data) > self._max_bytes:
            self._turn_over()
        while data:
            written = os.write(self._descriptor, data)
            self._size += written
            data = data[written:]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _turn_over(self) -> None:
        os.close(self._descriptor)
        for number in range(self._keep, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._descriptor = self._open()
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self._path if number == 0 else self._path.with_name(f"{self._path.name}.{number}")
