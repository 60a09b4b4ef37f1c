"""Keys of audit logs, and the check of an inclusion proof on this side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars.audit.v1 import audit_pb2
from kars_common.audit import merkle, open_checkpoint, parse_verifier_key
from kars_common.errors import InvalidInputError, KarsError

from kars_cli import home

_BESIDE_LOG = "key"
_MAX_KEY_BYTES = 4096


@dataclass(frozen=True)
class LogKey:
    """A verifier key."""

    name: str
    key: Ed25519PublicKey


def read(path: Path) -> LogKey:
    """Read a verifier key.

    Raises:
        InvalidInputError: `verifier_key_malformed`, `verifier_key_missing`.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_BYTES).decode("utf-8", "replace")
    except OSError as exc:
        raise InvalidInputError("verifier_key_missing", f"cannot read {path}: {exc.strerror}") from None
    name, key = parse_verifier_key(text)
    return LogKey(name, key)


def log_key(given: Path | None, directory: Path) -> tuple[LogKey, bool]:
    """Return the log's key, and whether it came from somewhere else than the log's own folder."""
    if given is not None:
        return read(given), given.resolve().parent != directory.resolve()
    return read(directory / _BESIDE_LOG), False


def log_directory(sandbox: str | None, namespace: str) -> Path:
    """Return where the local platform keeps a log."""
    state = home.state_dir()
    if sandbox is None:
        return state / "controller" / "audit"
    return state / "pods" / namespace / sandbox / "router" / "audit"


def local_key(sandbox: str | None, namespace: str) -> LogKey:
    """Return the key beside a log of this machine."""
    return read(log_directory(sandbox, namespace) / _BESIDE_LOG)


def check_inclusion(answer: audit_pb2.GetInclusionProofResponse, seq: int, key: LogKey) -> dict[str, Any]:
    """Verify a proof against the signed head that came with it; `included` says whether it holds."""
    hashes = list(answer.hashes)
    result: dict[str, Any] = {
        "included": False,
        "problem": "",
        "seq": seq,
        "record": answer.record.decode("utf-8", "replace").rstrip("\n"),
        "treeSize": answer.tree_size,
        "hashes": [item.hex() for item in hashes],
        "signedNote": answer.signed_note.decode("utf-8", "replace"),
        "origin": "",
        "rootHash": "",
    }
    try:
        head = open_checkpoint(answer.signed_note, key.key)
    except KarsError as exc:
        return {**result, "problem": f"the signed head does not verify: {exc.message}"}
    result |= {"origin": head.origin, "rootHash": head.root.hex()}
    if head.size != answer.tree_size:
        return {
            **result,
            "problem": f"the head is about {head.size} records, the proof about {answer.tree_size}",
        }
    leaf = merkle.leaf_hash(answer.record.rstrip(b"\n"))
    if not merkle.verify_inclusion(leaf, seq, head.size, hashes, head.root):
        return {**result, "problem": "the hashes do not lead from the record to the signed root"}
    return {**result, "included": True}
