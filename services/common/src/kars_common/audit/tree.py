"""The file of tree nodes: what makes proofs cheap without holding the log in memory.

Nodes are kept in post-order, 32 bytes each: after every leaf come the inner nodes it completed. The place
of a node follows from its level and index alone, so a proof reads a handful of hashes. The file is derived
from the segments; new nodes wait in memory until `flush`, and a lost or damaged file is written again at
`AuditLog.open`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from kars_common.audit.findings import Finding, Problem
from kars_common.audit.merkle import HASH_BYTES, CompactRange, edge_nodes
from kars_common.errors import OutOfRangeError

_FLUSH_NODES = 4096
_HOLE = bytes(HASH_BYTES)


def node_count(size: int) -> int:
    """Return how many nodes the file holds for a tree of `size` leaves."""
    return 2 * size - size.bit_count()


def node_place(level: int, index: int) -> int:
    """Return the place of a complete node in the file, counted in nodes."""
    last_leaf = ((index + 1) << level) - 1
    return node_count(last_leaf) + level


class TreeFile:
    """Appends nodes and reads them back by level and index. One writer, same thread."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; it is not looked into."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pending: list[bytes] = []
        self._written = os.fstat(self._fd).st_size // HASH_BYTES

    @property
    def nodes(self) -> int:
        """How many nodes are held, pending ones included."""
        return self._written + len(self._pending)

    def reset(self, size: int, edge: Iterable[bytes]) -> None:
        """Forget all nodes beyond a tree of `size` leaves and make sure that its edge is in place.

        Places that were never written read as holes, which no proof may use.
        """
        self._pending.clear()
        self._written = node_count(size)
        os.ftruncate(self._fd, self._written * HASH_BYTES)
        for (level, index), digest in zip(edge_nodes(size), edge, strict=True):
            os.pwrite(self._fd, digest, node_place(level, index) * HASH_BYTES)

    def extend(self, completed: list[bytes]) -> None:
        """Add the nodes that one leaf completed."""
        self._pending += completed
        if len(self._pending) >= _FLUSH_NODES:
            self.flush()

    def flush(self) -> None:
        """Write what is pending. Not synced: the file can be derived again.

        Raises:
            OSError: when the file cannot be written.
        """
        view = memoryview(b"".join(self._pending))
        place = self._written * HASH_BYTES
        while view:
            done = os.pwrite(self._fd, view, place)
            place += done
            view = view[done:]
        self._written += len(self._pending)
        self._pending.clear()

    def read(self, level: int, index: int) -> bytes:
        """Return the hash of a complete node.

        Raises:
            OutOfRangeError: `audit_node_unavailable`, when it was pruned or is not complete.
        """
        place = node_place(level, index)
        if place >= self._written:
            pending = place - self._written
            digest = self._pending[pending] if pending < len(self._pending) else b""
        else:
            digest = os.pread(self._fd, HASH_BYTES, place * HASH_BYTES)
        if len(digest) != HASH_BYTES or digest == _HOLE:
            raise OutOfRangeError("audit_node_unavailable", f"no hash for node {index} of level {level}")
        return digest

    def range(self, size: int) -> CompactRange:
        """Return the edge of the tree at an earlier size.

        Raises:
            OutOfRangeError: `audit_node_unavailable`.
        """
        return CompactRange(size, [self.read(level, index) for level, index in edge_nodes(size)])

    def close(self) -> None:
        """Flush as far as the disk lets us, and close."""
        try:
            self.flush()
        except OSError:
            pass  # derived: the next `open` writes what is missing
        finally:
            os.close(self._fd)


class TreeComparison:
    """Compares a tree file, front to back, with nodes computed from the records."""

    def __init__(self, path: Path, size: int) -> None:
        """Open the file, if there is one, at the nodes after a tree of `size` leaves."""
        self._file = path.open("rb") if path.exists() else None
        self._name = path.name
        self._place = node_count(size) * HASH_BYTES
        if self._file is not None:
            self._file.seek(self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def compare(self, completed: list[bytes], seq: int) -> Finding | None:
        """Return where the file differs from the nodes that one leaf completed.

        The end of the file is no difference: the newest nodes may not have been written yet.
        """
        if self._file is None:
            return None
        expected = b"".join(completed)
        found = self._file.read(len(expected))
        if not expected.startswith(found):
            differing = next(i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b)
            return Finding(
                problem=Problem.TREE_MISMATCH,
                file=self._name,
                offset=self._place + differing,
                seq=seq,
                detail="not the hash of the records",
            )
        self._place += len(found)
        if len(found) < len(expected):  # what a living log writes later belongs elsewhere in the walk
            self._file.close()
            self._file = None
        return None
