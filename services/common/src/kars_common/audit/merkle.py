"""The Merkle tree of RFC 9162, section 2.1, as functions over hashes.

Knows hashes and sizes only; where node hashes are kept is the caller's business (see `tree`). A *node*
`(level, index)` is the root of the perfect subtree over leaves `[index << level, (index + 1) << level)`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
"""Returns the hash of a complete node `(level, index)`."""

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256 over 0x00 and the entry."""
    return _sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256 over 0x01 and both children."""
    return _sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The right edge of a growing tree: one hash for each bit set in its size."""

    __slots__ = ("_edge", "size")

    def __init__(self, size: int = 0, edge: Iterable[bytes] = ()) -> None:
        self.size = size
        self._edge = list(edge)  # largest subtree first
        if len(self._edge) != size.bit_count():
            raise ValueError(
                f"a tree of {size} leaves has {size.bit_count()} edge nodes, got {len(self._edge)}"
            )

    @property
    def edge(self) -> list[bytes]:
        """The roots of the perfect subtrees, largest first (a copy)."""
        return list(self._edge)

    def copy(self) -> "CompactRange":
        """Return an independent copy; costs O(log n)."""
        return CompactRange(self.size, self._edge)

    def append(self, leaf: bytes, completed: list[bytes]) -> None:
        """Add a leaf; append the nodes it completes to `completed`, leaf first, in post-order."""
        edge = self._edge
        size = self.size
        completed.append(leaf)
        while size & 1:
            leaf = _sha256(b"\x01" + edge.pop() + leaf).digest()
            completed.append(leaf)
            size >>= 1
        edge.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the tree's root hash (of the empty string for an empty tree)."""
        if not self._edge:
            return EMPTY_ROOT
        root = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            root = node_hash(left, root)
        return root


def edge_nodes(size: int) -> Iterator[tuple[int, int]]:
    """Yield the nodes of the right edge of a tree of `size` leaves, largest first."""
    start = 0
    for level in range(size.bit_length() - 1, -1, -1):
        if size >> level & 1:
            yield level, start >> level
            start += 1 << level


def subtree_root(read: NodeReader, start: int, end: int) -> bytes:
    """Return the hash of the (possibly ragged) subtree over leaves `[start, end)`.

    `start` must be a multiple of the largest power of two not above `end - start`, as it is for every
    subtree that RFC 9162 speaks of.
    """
    size = end - start
    hashes = [read(level, (start >> level) + index) for level, index in edge_nodes(size)]
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size` (which is at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(read: NodeReader, index: int, size: int) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree of `size` leaves (RFC 9162, 2.1.3.1)."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(subtree_root(read, middle, end))
            end = middle
        else:
            path.append(subtree_root(read, start, middle))
            start = middle
    path.reverse()
    return path


def consistency_proof(read: NodeReader, old_size: int, new_size: int) -> list[bytes]:
    """Return the proof that the first `old_size` leaves did not change (RFC 9162, 2.1.4.1)."""
    if not 0 <= old_size <= new_size:
        raise ValueError(f"no proof from {old_size} to {new_size}")
    if old_size in {0, new_size}:
        return []
    path: list[bytes] = []
    start, end = 0, new_size
    whole = True  # the old tree is still a complete subtree that the verifier holds
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(subtree_root(read, middle, end))
            end = middle
        else:
            path.append(subtree_root(read, start, middle))
            start = middle
            whole = False
    if not whole:
        path.append(subtree_root(read, start, end))
    path.reverse()
    return path


def root_from_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root that an audit path leads to, or None when its shape is wrong (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return None
    node, last, root = index, size - 1, leaf
    for sibling in path:
        if last == 0 or len(sibling) != HASH_BYTES:
            return None
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            root = node_hash(root, sibling)
        node >>= 1
        last >>= 1
    return root if last == 0 else None


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Tell whether `path` proves that `leaf` is leaf `index` of the tree with this size and root."""
    return root_from_inclusion(leaf, index, size, path) == root


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]
) -> bool:
    """Tell whether `path` proves that the new tree begins with the old one (RFC 9162, 2.1.4.2)."""
    if not 0 <= old_size <= new_size or any(len(sibling) != HASH_BYTES for sibling in path):
        return False
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    if old_size == new_size:
        return not path and old_root == new_root
    hashes = list(path)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and old == old_root and new == new_root
