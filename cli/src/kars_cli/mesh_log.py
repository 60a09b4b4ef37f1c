"""The registration log as an outsider checks it: signed, pinned, only growing, at one with the controller.

The relay keeps the log and is not believed. Its key is pinned at first sight, each head must contain the one
that was seen before, each registration must be proved, and its key must be one that the controller stated.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars.audit.v1 import audit_pb2
from kars.mesh.v1 import registry_pb2
from kars_common import files
from kars_common.audit import Checkpoint, merkle, open_checkpoint, parse_verifier_key
from kars_common.errors import FailedPreconditionError, NotFoundError
from kars_common.policy import key_id

from kars_cli import stubs
from kars_cli.session import Session

_KEY_FILE = "mesh-log.key"
_HEAD_FILE = "mesh-log.head"
_MAX_REGISTRATIONS = 10_000
_RECORDS_A_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What is proved about a peer."""

    peer: str
    identity_key: bytes
    index: int
    log_size: int

    @property
    def key_id(self) -> str:
        """Short name of its key."""
        return key_id(Ed25519PublicKey.from_public_bytes(self.identity_key))


class RegistrationLog:
    """One look at the log: a head that was checked, and proofs against it."""

    def __init__(self, session: Session, head: Checkpoint) -> None:
        self._stub = stubs.registry(session)
        self._session = session
        self.head = head

    @classmethod
    async def open(cls, session: Session) -> "RegistrationLog":
        """Fetch the newest head and check it against what was seen before.

        Raises:
            FailedPreconditionError: `mesh_log_key_changed`, `mesh_log_rewritten`.
            InvalidInputError: the head is not what it must be.
        """
        stub, directory = stubs.registry(session), session.home / "cli"
        answer = await stub.GetTreeHead(registry_pb2.GetTreeHeadRequest())
        origin, key = parse_verifier_key(answer.verifier_key)
        _pin(directory / _KEY_FILE, answer.verifier_key)
        head = open_checkpoint(answer.signed_note, key, origin)
        before = _read_head(directory / _HEAD_FILE)
        if before is not None:
            size, root = before
            await _check_grown(session, size, root, head)
        plain = {"size": head.size, "root": head.root.hex()}
        files.replace(directory / _HEAD_FILE, json.dumps(plain).encode())
        return cls(session, head)

    async def find(self, peer: str) -> Registered:
        """Return a peer's newest registration, proved.

        Raises:
            NotFoundError: `peer_not_found`.
            FailedPreconditionError: `mesh_log_rewritten`: a proof does not hold.
        """
        wanted = hashlib.sha256(peer.encode()).hexdigest()
        for index in range(self.head.size - 1, max(-1, self.head.size - 1 - _MAX_REGISTRATIONS), -1):
            answer = await self._stub.GetInclusionProof(
                registry_pb2.GetInclusionProofRequest(index=index, tree_size=self.head.size)
            )
            leaf = merkle.leaf_hash(answer.record)
            if not merkle.verify_inclusion(leaf, index, self.head.size, list(answer.hashes), self.head.root):
                raise _rewritten(f"entry {index} is not in the tree that was signed")
            record = json.loads(answer.record)
            if record.get("peer_sha256") == wanted:
                return Registered(
                    peer=peer,
                    identity_key=bytes.fromhex(record["identity_key"]),
                    index=index,
                    log_size=self.head.size,
                )
        raise NotFoundError("peer_not_found", f"{peer} has never registered in the mesh")

    async def stated(self, found: Registered) -> bool:
        """Tell whether the controller stated this key of this peer, by its own audit log."""
        log, seq, newest = stubs.controller_audit(self._session), 0, ""
        while True:
            page = await log.ListRecords(
                audit_pb2.ListRecordsRequest(start_seq=seq, page_size=_RECORDS_A_PAGE)
            )
            for line in page.records:
                record = json.loads(line)
                if record.get("type") == "mesh.statement_issued" and record.get("peer") == found.peer:
                    newest = str(record.get("identity_key"))
            if not page.next_seq:
                return newest == found.key_id
            seq = page.next_seq


async def _check_grown(session: Session, size: int, root: bytes, head: Checkpoint) -> None:
    if head.size < size:
        raise _rewritten(f"it had {size} entries and has {head.size}")
    if head.size == size:
        if head.root != root:
            raise _rewritten("its entries were changed")
        return
    if size == 0:
        return
    request = registry_pb2.GetConsistencyProofRequest(old_size=size, new_size=head.size)
    answer = await stubs.registry(session).GetConsistencyProof(request)
    if not merkle.verify_consistency(size, root, head.size, head.root, list(answer.hashes)):
        raise _rewritten("it does not contain what was there before")


def _pin(path: Path, verifier_key: str) -> None:
    try:
        pinned = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        files.replace(path, verifier_key.encode() + b"\n")
        return
    if pinned != verifier_key:
        raise FailedPreconditionError(
            "mesh_log_key_changed",
            f"the registration log is signed with another key than before; if that is right, remove {path}",
        )


def _read_head(path: Path) -> tuple[int, bytes] | None:
    try:
        plain = json.loads(path.read_bytes())
        return int(plain["size"]), bytes.fromhex(plain["root"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise FailedPreconditionError("mesh_log_head_damaged", f"{path} is damaged; remove it") from None


def _rewritten(what: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "mesh_log_rewritten", f"the relay's registration log was rewritten: {what}"
    )
