"""Where a log lives: names of its files, and reading lines out of segments.

    <first seq>.jsonl        one segment: records from that sequence number on, one a line
    <first seq>.checkpoint   the signed head of the tree when the segment began (none for seq 0)
    <first seq>.edge         the tree's edge hashes at that size: verification can start there
    tree                     hashes of all complete nodes; derived, rebuilt when damaged
    checkpoint               the newest signed head over durable records
    witnessed                the newest head that a witness cosigned
    key                      the log's public key in C2SP verifier form; a convenience, never trusted
    lock                     held by the writing process

Knows names and line ends, not what a record says.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

TREE = "tree"
CHECKPOINT = "checkpoint"
WITNESSED = "witnessed"
KEY = "key"
LOCK = "lock"

_NAME = re.compile(r"([0-9]{20})\.jsonl")
_BLOCK_BYTES = 256 * 1024
MAX_LINE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment file."""

    path: Path
    first_seq: int

    @property
    def checkpoint_path(self) -> Path:
        """The signed head at the segment's start."""
        return self.path.with_suffix(".checkpoint")

    @property
    def edge_path(self) -> Path:
        """The tree's edge at the segment's start."""
        return self.path.with_suffix(".edge")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a segment, without its line end."""

    offset: int
    data: bytes
    complete: bool


def segment(directory: Path, first_seq: int) -> Segment:
    """Return the segment of a directory that begins with `first_seq`."""
    return Segment(path=directory / f"{first_seq:020d}.jsonl", first_seq=first_seq)


def list_segments(directory: Path) -> list[Segment]:
    """Return the segments of a directory by sequence number."""
    names = (_NAME.fullmatch(entry.name) for entry in directory.iterdir())
    return [segment(directory, first) for first in sorted(int(name[1]) for name in names if name)]


def read_lines(
    path: Path, *, offset: int = 0, skip: int = 0, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Line]:
    """Yield the lines of a segment; memory stays within one block and one line.

    A line longer than `max_line_bytes` ends the iteration: what was read of it comes last, marked incomplete.

    Args:
        path: The segment.
        offset: Where a line begins.
        skip: How many lines from there are not wanted.
        max_line_bytes: Longest line to gather.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        offset, rest = _skip_lines(file, offset, skip)
        while True:
            start = 0
            while (end := rest.find(b"\n", start)) >= 0:
                yield Line(offset + start, rest[start:end], complete=True)
                start = end + 1
            offset += start
            rest = rest[start:]
            if len(rest) > max_line_bytes or not (block := file.read(_BLOCK_BYTES)):
                break
            rest += block
        if rest:
            yield Line(offset, rest, complete=False)


def _skip_lines(file: RawIOBase, offset: int, lines: int) -> tuple[int, bytes]:
    """Read past `lines` lines; return the offset reached and the bytes already read from there."""
    while lines and (block := file.read(_BLOCK_BYTES)):
        found = block.count(b"\n")
        if found < lines:
            lines -= found
            offset += len(block)
            continue
        position = 0
        for _ in range(lines):
            position = block.index(b"\n", position) + 1
        return offset + position, block[position:]
    return offset, b""


def sync_directory(directory: Path) -> None:
    """Make created and renamed names of a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically and durably; readers see the old or the new bytes."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.replace(path)
    sync_directory(path.parent)
