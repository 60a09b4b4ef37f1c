"""Reads the log that Envoy writes, from where it was read to before, and never skips a line.

The file on Envoy's disk is the record; a stream over the network is not, because Envoy drops entries while
nobody listens and does not count them. The place that was read to is kept only after what was read is
durable, so a crash repeats lines rather than losing them. A file that has grown large is renamed, Envoy is
told to open a new one, and the old one is read to its end before it is removed.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
from kars_common import files

_CHUNK_BYTES = 1024 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024


class Spool:
    """One log file and the place in it. Single reader; every method blocks for file input and output only."""

    def __init__(self, log_file: Path, cursor_file: Path) -> None:
        """Open at the place that was kept, or at the beginning."""
        self._log_file = log_file
        self._cursor_file = cursor_file
        self._inode, self._offset = self._kept()
        self._pending_inode, self._pending_offset = self._inode, self._offset

    def read(self) -> Iterator[bytes]:
        """Yield whole lines that were not read before; `commit` when they are safe."""
        for file in self._files():
            with file.open("rb") as reader:
                inode = os.fstat(reader.fileno()).st_ino
                if inode != self._pending_inode:
                    self._pending_inode, self._pending_offset = inode, 0
                reader.seek(self._pending_offset)
                yield from self._lines(reader.read(_CHUNK_BYTES))
                if reader.tell() < os.fstat(reader.fileno()).st_size:
                    return  # there is more in this file: it comes next time, before newer files

    def commit(self) -> None:
        """Keep the place up to which lines were yielded, and remove files that were read to their end."""
        if (self._pending_inode, self._pending_offset) == (self._inode, self._offset):
            return
        self._inode, self._offset = self._pending_inode, self._pending_offset
        files.replace(self._cursor_file, orjson.dumps({"inode": self._inode, "offset": self._offset}))
        for file in self._older():  # oldest first
            if file.stat().st_ino == self._inode:
                break
            file.unlink()

    def rotate_if_large(self, reopen: Callable[[], None], limit: int = MAX_FILE_BYTES) -> bool:
        """Rename a large file and let Envoy open a new one."""
        try:
            size = self._log_file.stat().st_size
        except FileNotFoundError:
            return False
        if size < limit:
            return False
        numbers = [int(file.suffix[1:]) for file in self._older()]
        self._log_file.rename(self._log_file.with_suffix(f".{max(numbers, default=0) + 1}"))
        reopen()
        return True

    def _lines(self, data: bytes) -> Iterator[bytes]:
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == _CHUNK_BYTES:
            end = len(data)  # no line is that long: not Envoy's; the parser refuses it and says so
        self._pending_offset += end
        yield from data[:end].splitlines()

    def _files(self) -> list[Path]:
        found = [*self._older(), self._log_file] if self._log_file.exists() else self._older()
        for index, file in enumerate(found):
            if file.stat().st_ino == self._pending_inode:
                return found[index:]
        return found

    def _older(self) -> list[Path]:
        pattern = f"{self._log_file.stem}.*"
        older = [file for file in self._log_file.parent.glob(pattern) if file.suffix[1:].isdigit()]
        return sorted(older, key=lambda file: int(file.suffix[1:]))

    def _kept(self) -> tuple[int, int]:
        try:
            value = orjson.loads(self._cursor_file.read_bytes())
            return int(value["inode"]), int(value["offset"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0
