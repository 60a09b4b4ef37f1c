"""What the offline verifier can say: problems, places, and the report."""

from dataclasses import dataclass
from enum import StrEnum


class Problem(StrEnum):
    """What is wrong with a log."""

    EMPTY = "empty"
    UNREADABLE = "unreadable"
    MALFORMED_RECORD = "malformed_record"
    CHAIN_BROKEN = "chain_broken"
    HASH_MISMATCH = "hash_mismatch"
    CHECKPOINT_SIGNATURE = "checkpoint_signature"
    CHECKPOINT_MISSING = "checkpoint_missing"
    COSIGNATURE = "cosignature"
    EDGE_MISMATCH = "edge_mismatch"
    MISSING_SEGMENT = "missing_segment"
    TORN_RECORD = "torn_record"
    TRUNCATED = "truncated"
    TREE_MISMATCH = "tree_mismatch"
    KEY_MISMATCH = "key_mismatch"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The first thing that is wrong: what, and where."""

    problem: Problem
    file: str
    line: int = 0
    """1-based; 0 when the file as a whole is meant."""
    offset: int = 0
    """Byte offset in the file: of the line, or of the hash in the tree file."""
    seq: int | None = None
    """The record, where one is meant."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.problem}: {self.file}, line {self.line}, byte {self.offset}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What the verifier found."""

    origin: str
    first_seq: int
    """First record in the directory; above 0 after pruning."""
    size: int
    """Records verified, counted from the log's beginning."""
    signed_size: int
    """How many of them a signed head covers; the rest is held by the chain alone."""
    witnessed_size: int
    """How many of them a cosigned head covers."""
    heads: int
    """How many signed heads were checked."""
    finding: Finding | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.finding is None


class FoundError(Exception):
    """Ends a verification with its finding; never leaves the package."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding
