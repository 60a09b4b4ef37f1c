"""The offline verifier: says whether a log is whole, from its files and public keys alone.

Trusts nothing in the directory but what a signature covers, changes nothing, and needs no running service.
Reads each file once, front to back, with flat memory, and stops at the first thing that is wrong, saying
where it is. The order: signed heads, the tree's edge at the first record, then every record (form, number,
chain, tree), each head when its size is reached, and last whether a head was signed over more records than
there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kars_common.audit import canonical, merkle, recovery, segments
from kars_common.audit.canonical import Json
from kars_common.audit.findings import Finding, FoundError, Problem, VerifyReport
from kars_common.audit.heads import Heads
from kars_common.audit.tree import TreeComparison
from kars_common.errors import InvalidInputError


def verify_directory(
    directory: Path | str,
    public_key: Ed25519PublicKey,
    witness_key: Ed25519PublicKey | None = None,
    *,
    origin: str | None = None,
    witness_name: str | None = None,
    witnessed_note: bytes | None = None,
) -> VerifyReport:
    """Verify a whole log. Blocks: reads every byte of it. May run beside the writing process.

    Args:
        directory: The log's directory, or a copy.
        public_key: The log's key, from a source that is not the directory.
        witness_key: The witness's key; then `witnessed`, when present, must carry its cosignature.
        origin: The expected origin; None takes the first record's.
        witness_name: The witness's key name; None takes any name.
        witnessed_note: The head that the witness itself keeps: shows a tail that was cut together with the
            directory's own heads.

    Returns:
        A report; a log that is not whole is a report with a finding, not an exception.
    """
    walk = _Walk(Path(directory))
    try:
        walk.begin(public_key, witness_key, origin, witness_name, witnessed_note)
        walk.read_records()
        walk.end()
    except FoundError as exc:
        return walk.report(exc.finding)
    except OSError as exc:
        file = Path(str(exc.filename)).name if exc.filename else "."
        return walk.report(Finding(problem=Problem.UNREADABLE, file=file, detail=exc.strerror or ""))
    return walk.report(walk.tree_finding)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line, where it was read."""

    segment: segments.Segment
    number: int
    offset: int
    data: bytes
    complete: bool

    def found(self, problem: Problem, seq: int, detail: str) -> FoundError:
        return FoundError(
            Finding(
                problem=problem,
                file=self.segment.path.name,
                line=self.number,
                offset=self.offset,
                seq=seq,
                detail=detail,
            )
        )

    def claimed_prev(self) -> str | None:
        """What the record says its predecessor's hash is; None when it says nothing readable."""
        try:
            prev = canonical.decode(self.data).get("prev")
        except InvalidInputError:
            return None
        return prev if isinstance(prev, str) else None


class _Walk:
    """One verification of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._origin = ""
        self._heads: Heads | None = None
        self._segments: list[segments.Segment] = []
        self._edge = merkle.CompactRange()
        self._first_seq = 0
        self._pruned_to = 0
        self._signed_size = 0
        self._last: _Line | None = None
        self._last_leaf = b""
        self._since_head: _Line | None = None
        self.tree_finding: Finding | None = None

    def begin(
        self,
        key: Ed25519PublicKey,
        witness_key: Ed25519PublicKey | None,
        origin: str | None,
        witness_name: str | None,
        witnessed_note: bytes | None,
    ) -> None:
        """Check what is signed, and find where records begin."""
        self._segments = segments.list_segments(self._directory)
        if not self._segments:
            raise FoundError(Finding(problem=Problem.EMPTY, file=".", detail="no segment in the directory"))
        self._origin = origin if origin is not None else self._first_origin()
        self._heads = Heads(origin=self._origin, key=key, witness_key=witness_key, witness_name=witness_name)
        self._heads.load(self._directory, witnessed_note)
        # Listed again: a log that is being written may have begun a segment that a head already covers.
        self._segments = segments.list_segments(self._directory)
        for part in self._segments:
            edge = self._edge_at(part, key)
            if part is self._segments[0]:
                self._edge = edge
                self._first_seq = edge.size

    def _first_origin(self) -> str:
        line = next(self._lines(), None)
        if line is None:
            raise FoundError(
                Finding(problem=Problem.EMPTY, file=self._segments[0].path.name, detail="no record")
            )
        try:
            origin = canonical.decode(line.data).get("origin")
        except InvalidInputError as exc:
            raise line.found(Problem.MALFORMED_RECORD, self._segments[0].first_seq, exc.message) from exc
        if not isinstance(origin, str) or not origin:
            raise line.found(Problem.MALFORMED_RECORD, self._segments[0].first_seq, "no origin")
        return origin

    def _edge_at(self, part: segments.Segment, key: Ed25519PublicKey) -> merkle.CompactRange:
        try:
            return recovery.starting_edge(part, self._origin, key)
        except FileNotFoundError as exc:
            raise FoundError(
                Finding(
                    problem=Problem.CHECKPOINT_MISSING,
                    file=part.path.name,
                    seq=part.first_seq,
                    detail="no signed head at its start",
                )
            ) from exc
        except InvalidInputError as exc:
            raise FoundError(
                Finding(problem=Problem.EDGE_MISMATCH, file=part.edge_path.name, line=1, detail=exc.message)
            ) from exc

    def _lines(self) -> Iterator[_Line]:
        for part in self._segments:
            for number, line in enumerate(segments.read_lines(part.path), start=1):
                if not line.complete and self._being_written(part, line):
                    return  # the heads were read before: they cover nothing that is not here
                yield _Line(part, number, line.offset, line.data, line.complete)

    def _being_written(self, part: segments.Segment, line: segments.Line) -> bool:
        """Tell whether a line was caught in the middle of its write: the file has grown since."""
        if part is not self._segments[-1] or len(line.data) > segments.MAX_LINE_BYTES:
            return False
        return part.path.stat().st_size > line.offset + len(line.data)

    def read_records(self) -> None:
        """Check every record against its neighbours, and the tree against every head."""
        with TreeComparison(self._directory / segments.TREE, self._edge.size) as tree:
            self._check_heads(None)
            lines = self._lines()
            line = next(lines, None)
            while line is not None:
                following = next(lines, None)
                leaf = self._check_record(line, following)
                completed: list[bytes] = []
                self._edge.append(leaf, completed)
                if self.tree_finding is None:
                    self.tree_finding = tree.compare(completed, self._edge.size - 1)
                self._last, self._last_leaf = line, leaf
                self._since_head = self._since_head or line
                self._check_heads(following)
                line = following

    def _check_record(self, line: _Line, following: _Line | None) -> bytes:
        seq = self._edge.size
        if line.number == 1 and line.segment.first_seq != seq:
            raise line.found(
                Problem.MISSING_SEGMENT, seq, f"begins with record {line.segment.first_seq}, expected {seq}"
            )
        if not line.complete:
            torn = following is None and line.segment is self._segments[-1]
            problem = Problem.TORN_RECORD if torn else Problem.MALFORMED_RECORD
            raise line.found(problem, seq, "the line has no end")
        try:
            record = canonical.decode(line.data)
        except InvalidInputError as exc:
            raise line.found(Problem.MALFORMED_RECORD, seq, exc.message) from exc
        leaf = merkle.leaf_hash(line.data)
        self._check_link(line, following, record, leaf)
        if record.get("type") == "log.pruned" and isinstance(to := record.get("first_seq"), int):
            self._pruned_to = max(self._pruned_to, to)
        return leaf

    def _check_link(self, line: _Line, following: _Line | None, record: dict[str, Json], leaf: bytes) -> None:
        seq = self._edge.size
        if self._last is not None:
            prev = self._last_leaf.hex()
        elif seq == 0:
            prev = recovery.GENESIS
        else:  # after pruning: the record before is gone, and the signed tree vouches for what this one says
            prev = str(record.get("prev"))
        wrong = recovery.check_link(record, seq, self._origin, prev)
        if wrong is None:
            return
        if record.get("prev") != prev and self._last is not None and self._since_head is not None:
            # Either record may be the changed one. The successor tells, when it agrees with this one.
            successor = following.claimed_prev() if following is not None else None
            if successor is None or successor == leaf.hex():
                raise self._last.found(
                    Problem.CHAIN_BROKEN, seq - 1, f"record {seq} was chained to a different record {seq - 1}"
                )
        raise line.found(Problem.CHAIN_BROKEN, seq, wrong)

    def _check_heads(self, following: _Line | None) -> None:
        size = self._edge.size
        here = self._heads.by_size.get(size) if self._heads else None
        if not here:
            return
        root = self._edge.root()
        for head in here:
            if head.root != root:
                self._raise_hash_mismatch(head.file, following)
        self._signed_size = size
        self._since_head = None

    def _raise_hash_mismatch(self, file: str, following: _Line | None) -> None:
        size = self._edge.size
        if self._last is None or self._since_head is None:
            raise FoundError(
                Finding(
                    problem=Problem.HASH_MISMATCH, file=file, line=1, detail="two heads of one size differ"
                )
            )
        rewritten = following is not None and following.claimed_prev() == self._last_leaf.hex()
        suspect = self._since_head if rewritten else self._last
        raise suspect.found(
            Problem.HASH_MISMATCH,
            self._signed_size if rewritten else size - 1,
            f"records {self._signed_size} to {size - 1} are not what {file} was signed over",
        )

    def end(self) -> None:
        """Check that nothing is missing at either end."""
        signed = self._heads.by_size if self._heads else {}
        beyond = sorted(size for size in signed if size > self._edge.size)
        last = self._segments[-1]
        if beyond or last.first_seq > self._edge.size:
            size = beyond[0] if beyond else last.first_seq
            file = signed[size][0].file if beyond else last.path.name
            raise FoundError(
                Finding(
                    problem=Problem.TRUNCATED,
                    file=last.path.name,
                    line=self._last.number + 1 if self._last else 1,
                    offset=last.path.stat().st_size,
                    seq=self._edge.size,
                    detail=f"{file} was signed over {size} records, {self._edge.size} are here",
                )
            )
        if self._first_seq > self._pruned_to:
            raise FoundError(
                Finding(
                    problem=Problem.MISSING_SEGMENT,
                    file=self._segments[0].path.name,
                    seq=0,
                    detail=f"no record says that those before {self._first_seq} were pruned",
                )
            )

    def report(self, finding: Finding | None) -> VerifyReport:
        """Return the report with what was verified so far."""
        witnessed = self._heads.witnessed_size if self._heads else 0
        return VerifyReport(
            origin=self._origin,
            first_seq=self._first_seq,
            size=self._edge.size,
            signed_size=self._signed_size,
            witnessed_size=min(witnessed, self._signed_size),
            heads=self._heads.count if self._heads else 0,
            finding=finding,
        )
