"""Everything in a log's directory that carries a signature, checked before a record is believed."""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kars_common.audit import notes, segments
from kars_common.audit.findings import Finding, FoundError, Problem
from kars_common.errors import InvalidInputError

WITNESS_COPY = "the witness's copy"


@dataclass(frozen=True, slots=True)
class Head:
    """A signed head and the file it came from."""

    file: str
    root: bytes


@dataclass(kw_only=True)
class Heads:
    """The signed heads of one log by tree size."""

    origin: str
    key: Ed25519PublicKey
    witness_key: Ed25519PublicKey | None
    witness_name: str | None
    by_size: dict[int, list[Head]] = field(default_factory=dict)
    witnessed_size: int = 0

    @property
    def count(self) -> int:
        """How many heads were read."""
        return sum(map(len, self.by_size.values()))

    def load(self, directory: Path, witnessed_note: bytes | None) -> None:
        """Read and check all heads of a directory, and the one that the witness keeps.

        Raises:
            FoundError: a signature is wrong or missing.
            OSError: a file cannot be read.
        """
        self._check_key_file(directory / segments.KEY)
        for path in sorted(directory.glob("*.checkpoint")):
            size = self._add(path.name, path.read_bytes())
            if path.stem != f"{size:020d}":
                raise _found(path.name, f"the head in it has size {size}")
        for name in (segments.CHECKPOINT, segments.WITNESSED):
            path = directory / name
            if path.exists():
                self._add(name, path.read_bytes(), witnessed=name == segments.WITNESSED)
        if witnessed_note is not None:
            self._add(WITNESS_COPY, witnessed_note, witnessed=True)

    def _check_key_file(self, path: Path) -> None:
        if path.exists() and path.read_bytes() != notes.verifier_key(self.origin, self.key).encode() + b"\n":
            raise _found(path.name, "not the key and origin that were given", Problem.KEY_MISMATCH)

    def _add(self, file: str, note: bytes, *, witnessed: bool = False) -> int:
        try:
            head = notes.open_checkpoint(note, self.key, self.origin)
        except InvalidInputError as exc:
            raise _found(file, exc.message) from exc
        self.by_size.setdefault(head.size, []).append(Head(file, head.root))
        if witnessed and self.witness_key is not None:
            self._check_cosignature(file, note, self.witness_key)
            self.witnessed_size = max(self.witnessed_size, head.size)
        return head.size

    def _check_cosignature(self, file: str, note: bytes, key: Ed25519PublicKey) -> None:
        names = notes.signature_names(note) if self.witness_name is None else [self.witness_name]
        for name in names:
            try:
                notes.open_cosignature(note, name, key)
            except InvalidInputError as exc:
                if exc.reason != "note_unsigned":
                    raise _found(file, exc.message, Problem.COSIGNATURE) from exc
            else:
                return
        raise _found(file, "no cosignature by the witness's key", Problem.COSIGNATURE)


def _found(file: str, detail: str, problem: Problem = Problem.CHECKPOINT_SIGNATURE) -> FoundError:
    return FoundError(Finding(problem=problem, file=file, line=1, detail=detail))
