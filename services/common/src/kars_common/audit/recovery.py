"""Bringing a log back after its process ended, however it ended.

Only the last segment is read: its start is a signed head with the tree's edge beside it. A last line
without its end was never acknowledged and is cut off; anything else that is wrong is refused, never
repaired. What this module accepts is what the process may go on appending to; whether the whole log is
sound is `verify`'s question.
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kars_common.audit import canonical, merkle, notes, segments
from kars_common.audit.canonical import Json
from kars_common.audit.tree import TreeFile, node_count
from kars_common.errors import FailedPreconditionError, InvalidInputError, OutOfRangeError

MARK_EVERY = 256
GENESIS = "0" * 64
"""`prev` of the first record."""


@dataclass(kw_only=True)
class Recovered:
    """Where appending goes on."""

    segment: segments.Segment
    segment_bytes: int
    segment_started_s: float | None
    edge: merkle.CompactRange
    prev: str
    torn: dict[str, Json] | None
    marks: list[tuple[int, int]] = field(default_factory=list)
    """Sequence number and offset of every so many records, for readers that begin near the end."""


def damaged(path: Path, line: int, offset: int, what: str) -> FailedPreconditionError:
    """Return the error for a log that must not be appended to."""
    return FailedPreconditionError(
        "audit_log_damaged",
        f"{path.name}, line {line}, byte {offset}: {what}",
        metadata={"file": path.name, "line": str(line), "offset": str(offset)},
    )


def check_link(record: dict[str, Json], seq: int, origin: str, prev: str) -> str | None:
    """Return what is wrong with a record's place in the chain, or None."""
    if record.get("seq") != seq or isinstance(record.get("seq"), bool):
        return f"sequence number {record.get('seq')!r}, expected {seq}"
    if record.get("origin") != origin:
        return f"origin {record.get('origin')!r}, expected {origin!r}"
    if record.get("prev") != prev:
        return "prev is not the hash of the record before"
    return None


def starting_edge(segment: segments.Segment, origin: str, key: Ed25519PublicKey) -> merkle.CompactRange:
    """Return the tree's edge at a segment's start, checked against the signed head there.

    Raises:
        InvalidInputError: from `notes`, or `audit_edge_mismatch`.
        OSError: when a file is missing.
    """
    if segment.first_seq == 0:
        return merkle.CompactRange()
    head = notes.open_checkpoint(segment.checkpoint_path.read_bytes(), key, origin)
    text = segment.edge_path.read_bytes()
    try:
        hashes = [bytes.fromhex(line) for line in text.decode().split()]
        edge = merkle.CompactRange(head.size, hashes)
    except ValueError as exc:
        raise InvalidInputError("audit_edge_mismatch", f"{segment.edge_path.name} is malformed") from exc
    if edge_text(edge) != text:
        raise InvalidInputError("audit_edge_mismatch", f"{segment.edge_path.name} is malformed")
    if head.size != segment.first_seq or edge.root() != head.root:
        raise InvalidInputError("audit_edge_mismatch", f"{segment.edge_path.name} is not what was signed")
    return edge


def edge_text(edge: merkle.CompactRange) -> bytes:
    """Return the content of an `.edge` file: one hash a line, largest subtree first."""
    return "".join(f"{digest.hex()}\n" for digest in edge.edge).encode()


def recover(directory: Path, tree: TreeFile, origin: str, key: Ed25519PublicKey) -> Recovered:
    """Read the last segment, cut a torn last line, and bring the tree file up to date.

    Raises:
        FailedPreconditionError: `audit_log_damaged`, `audit_log_truncated` or `audit_key_mismatch`.
        OSError: when files cannot be read or written.
    """
    found = segments.list_segments(directory)
    if not found:
        found = [segments.segment(directory, 0)]
        found[0].path.touch(mode=0o600)
        segments.sync_directory(directory)
    last = found[-1]
    try:
        edge = starting_edge(last, origin, key)
        _prepare_tree(tree, found, edge, origin, key)
    except (InvalidInputError, FileNotFoundError) as exc:
        raise damaged(last.checkpoint_path, 1, 0, str(exc)) from exc
    state = Recovered(
        segment=last,
        segment_bytes=0,
        segment_started_s=None,
        edge=edge,
        prev=_prev_at(found, edge),
        torn=None,
    )
    _replay(state, tree, origin)
    _check_heads(directory, tree, state.edge, found[0].first_seq, origin=origin, key=key)
    return state


def _prev_at(found: list[segments.Segment], edge: merkle.CompactRange) -> str:
    """Return what the first record of the last segment must name as its predecessor."""
    if edge.size == 0:
        return GENESIS
    if edge.size & 1:
        return edge.edge[-1].hex()  # the last leaf is itself an edge node
    if len(found) > 1:
        newest = deque(segments.read_lines(found[-2].path), maxlen=1)
        if newest and newest[0].complete:
            return merkle.leaf_hash(newest[0].data).hex()
    raise damaged(found[-1].path, 1, 0, "the segment before it is missing")


def _prepare_tree(
    tree: TreeFile,
    found: list[segments.Segment],
    edge: merkle.CompactRange,
    origin: str,
    key: Ed25519PublicKey,
) -> None:
    if tree.nodes >= node_count(edge.size):
        try:
            if tree.range(edge.size).edge == edge.edge:
                tree.reset(edge.size, edge.edge)
                return
        except OutOfRangeError:
            pass
    grown = starting_edge(found[0], origin, key)
    tree.reset(grown.size, grown.edge)
    for sealed in found[:-1]:
        for line in segments.read_lines(sealed.path):
            completed: list[bytes] = []
            grown.append(merkle.leaf_hash(line.data), completed)
            tree.extend(completed)
    tree.flush()
    if grown.edge != edge.edge:
        raise InvalidInputError("audit_edge_mismatch", "earlier segments do not lead to the signed head")


def _replay(state: Recovered, tree: TreeFile, origin: str) -> None:
    path = state.segment.path
    for number, line in enumerate(segments.read_lines(path), start=1):
        if not line.complete:
            state.torn = {"file": path.name, "offset": line.offset, "sha256": _torn_digest(path, line.offset)}
            state.torn["bytes"] = path.stat().st_size - line.offset
            with path.open("r+b") as file:
                file.truncate(line.offset)
            break
        try:
            record = canonical.decode(line.data)
        except InvalidInputError as exc:
            raise damaged(path, number, line.offset, str(exc)) from exc
        wrong = check_link(record, state.edge.size, origin, state.prev)
        if wrong is not None:
            raise damaged(path, number, line.offset, wrong)
        if number == 1:
            state.segment_started_s = _time_s(record, path)
        if state.edge.size % MARK_EVERY == 0:
            state.marks.append((state.edge.size, line.offset))
        leaf = merkle.leaf_hash(line.data)
        completed: list[bytes] = []
        state.edge.append(leaf, completed)
        tree.extend(completed)
        state.prev = leaf.hex()
        state.segment_bytes = line.offset + len(line.data) + 1


def _time_s(record: dict[str, Json], path: Path) -> float:
    try:
        return datetime.fromisoformat(str(record.get("time"))).timestamp()
    except ValueError as exc:
        raise damaged(path, 1, 0, "the first record has no time") from exc


def _torn_digest(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.sha256(file.read(1 << 20)).hexdigest()


def _check_heads(
    directory: Path,
    tree: TreeFile,
    edge: merkle.CompactRange,
    first_seq: int,
    *,
    origin: str,
    key: Ed25519PublicKey,
) -> None:
    """Refuse a log that is shorter than, or different from, a head it signed before."""
    for name in (segments.CHECKPOINT, segments.WITNESSED):
        path = directory / name
        try:
            head = notes.open_checkpoint(path.read_bytes(), key, origin)
        except FileNotFoundError:
            continue
        except InvalidInputError as exc:
            raise FailedPreconditionError(
                "audit_key_mismatch", f"{name} is not signed by this log's key"
            ) from exc
        if head.size > edge.size:
            raise FailedPreconditionError(
                "audit_log_truncated", f"{name} was signed over {head.size} records, found {edge.size}"
            )
        if head.size < first_seq:
            continue  # it speaks of records that were pruned
        if tree.range(head.size).root() != head.root:
            raise FailedPreconditionError(
                "audit_log_damaged", f"records differ from what {name} was signed over"
            )
