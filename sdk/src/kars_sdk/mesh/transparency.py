"""The registration log: a registry that tells two stories about a peer is found out.

Every registration is a leaf of an append-only Merkle tree whose head the registry signs (C2SP signed note,
RFC 9162 proofs). Before a session is started with keys from the registry, the registration must be in the
tree of a head that grew from the last one that we saw. The log's key is pinned at first sight. Statements are
checked elsewhere; this adds that everybody is shown the same ones.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from kars.mesh.v1 import registry_pb2

from kars_sdk.mesh import payloads, primitives
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import IdentityError, PayloadError, TransportError
from kars_sdk.mesh.names import PeerName, trust_domain
from kars_sdk.mesh.statements import Statement
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.transport import Registry

MAX_NOTE_BYTES = 64 * 1024
MAX_PROOF_HASHES = 64
_HEAD_TRIES, _HEAD_WAIT_S = 10, 0.3
_ED25519 = b"\x01"
_LOG = "log"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a log says of itself."""

    size: int
    root: bytes


class RegistrationLog:
    """What we know of the registry's log."""

    def __init__(self, registry: Registry, store: Store, own: PeerName) -> None:
        self._registry = registry
        self._store = store
        self._domain = trust_domain(own)
        self._busy = asyncio.Lock()

    async def check(self, registration: registry_pb2.Registration, statement: Statement) -> None:
        """Check that a registration is in the log, and that the log only grew.

        Peers of other trust domains are in logs of their own registries and are not looked for here.

        Raises:
            IdentityError: `log_entry_wrong`, `log_key_changed`, `log_head_forged`, `log_forked`,
                `log_inclusion_wrong`.
            TransportError: the registry could not be asked, or its head lags behind: try again.
        """
        if trust_domain(statement.peer) != self._domain:
            return
        check_record(registration, statement)
        async with self._busy:
            head = await self._grown_head(registration.log_entry.index)
            answer = await self._registry.call(
                "GetInclusionProof",
                registry_pb2.GetInclusionProofRequest(
                    index=registration.log_entry.index, tree_size=head.size
                ),
                registry_pb2.GetInclusionProofResponse,
            )
        leaf = hashlib.sha256(b"\x00" + registration.log_entry.record).digest()
        if not included(leaf, registration.log_entry.index, head, list(answer.hashes)):
            raise IdentityError(
                "log_inclusion_wrong", f"the registration of {statement.peer} is not in the registry's log"
            )

    async def _grown_head(self, index: int) -> Head:
        """Return a signed head that covers an index and grew from the last one, which it replaces."""
        for _ in range(_HEAD_TRIES):
            answer = await self._registry.call(
                "GetTreeHead", registry_pb2.GetTreeHeadRequest(), registry_pb2.GetTreeHeadResponse
            )
            head = open_note(answer.signed_note, self._pinned(answer.verifier_key), self._origin)
            if head.size > index:
                await self._check_growth(head)
                return head
            await asyncio.sleep(_HEAD_WAIT_S)  # heads are signed every so often, a new leaf is waited for
        raise TransportError(
            "log_head_behind", "the registry has not signed a head over the registration yet"
        )

    async def _check_growth(self, head: Head) -> None:
        record = self._store.get(_LOG, b"head")
        if record is not None:
            reader = Reader(record, what="log head", max_bytes=64)
            last = Head(size=reader.u64(), root=reader.raw(32))
            proof: list[bytes] = []
            if 0 < last.size < head.size:
                answer = await self._registry.call(
                    "GetConsistencyProof",
                    registry_pb2.GetConsistencyProofRequest(old_size=last.size, new_size=head.size),
                    registry_pb2.GetConsistencyProofResponse,
                )
                proof = list(answer.hashes)
            if not consistent(last, head, proof):
                raise IdentityError("log_forked", "the registry's log is not the one that we saw before")
        with self._store.transaction():
            self._store.put(_LOG, b"head", Writer().u64(head.size).raw(head.root).bytes())

    def _pinned(self, verifier_key: str) -> bytes:
        key = read_verifier_key(verifier_key, self._origin)
        known = self._store.get(_LOG, b"key")
        if known is None:
            with self._store.transaction():
                self._store.put(_LOG, b"key", key)
        elif known != key:
            raise IdentityError(
                "log_key_changed", "the registry's log is signed with another key than before"
            )
        return key

    @property
    def _origin(self) -> str:
        return f"{self._domain}/mesh-registrations"


def check_record(registration: registry_pb2.Registration, statement: Statement) -> None:
    """Check that the log's leaf speaks of this statement.

    Raises:
        IdentityError: `log_entry_wrong`.
    """
    record = registration.log_entry.record
    expected = {
        "peer_sha256": hashlib.sha256(statement.peer.encode()).hexdigest(),
        "statement_sha256": hashlib.sha256(registration.identity.statement).hexdigest(),
        "identity_key": statement.identity_key.hex(),
    }
    try:
        leaf = payloads.decode_object(record)
    except PayloadError as exc:
        raise IdentityError("log_entry_wrong", "the registration has no readable leaf of the log") from exc
    fits = all(leaf.get(member) == value for member, value in expected.items())
    if not fits or leaf.get("type") not in {"mesh.registered", "mesh.rotated"}:
        raise IdentityError(
            "log_entry_wrong", f"the log's leaf does not speak of {statement.peer}'s statement"
        )


def read_verifier_key(text: str, origin: str) -> bytes:
    """Return the Ed25519 key of a C2SP verifier key, `name+hash+base64(0x01 key)`.

    Raises:
        IdentityError: `log_head_forged`.
    """
    try:
        name, key_id, encoded = text.split("+", 2)
        blob = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as exc:
        raise IdentityError("log_head_forged", "the log's verifier key is none") from exc
    key = blob[1:]
    if name != origin or blob[:1] != _ED25519 or len(key) != 32 or key_id != _key_id(origin, key).hex():
        raise IdentityError("log_head_forged", f"the verifier key is not one of {origin}")
    return key


def open_note(note: bytes, key: bytes, origin: str) -> Head:
    """Verify a signed note (c2sp.org/signed-note, tlog-checkpoint) and return the head in it.

    Raises:
        IdentityError: `log_head_forged`.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise IdentityError("log_head_forged", f"a signed head has {len(note)} bytes")
    text, separator, signatures = note.partition(b"\n\n")
    text += b"\n"
    if not separator or not any(
        primitives.verify(key, signature, b"", text) for signature in _signatures(signatures, origin, key)
    ):
        raise IdentityError("log_head_forged", f"the head is not signed by {origin}")
    lines = text.decode(errors="replace").split("\n")
    try:
        size, root = int(lines[1]), base64.b64decode(lines[2], validate=True)
    except (IndexError, ValueError, binascii.Error) as exc:
        raise IdentityError("log_head_forged", "the signed head is malformed") from exc
    if lines[0] != origin or str(size) != lines[1] or size < 0 or len(root) != 32:
        raise IdentityError("log_head_forged", "the signed head is of another log, or malformed")
    return Head(size=size, root=root)


def included(leaf: bytes, index: int, head: Head, path: Sequence[bytes]) -> bool:
    """Verify an inclusion proof (RFC 9162, 2.1.3.2)."""
    if index >= head.size or not _is_path(path):
        return False
    node, last, root = index, head.size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            root = _node(sibling, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = _node(root, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and root == head.root


def consistent(old: Head, new: Head, path: Sequence[bytes]) -> bool:
    """Verify that a log only grew (RFC 9162, 2.1.4.2)."""
    if old.size == new.size:
        return old.root == new.root
    if old.size > new.size or not _is_path(path):
        return False
    if old.size == 0:
        return True
    proof = list(path)
    if old.size & (old.size - 1) == 0:
        proof.insert(0, old.root)
    if not proof:
        return False
    node, last = old.size - 1, new.size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_root = new_root = proof[0]
    for sibling in proof[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_root, new_root = _node(sibling, old_root), _node(sibling, new_root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new_root = _node(new_root, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old_root == old.root and new_root == new.root


def _signatures(lines: bytes, origin: str, key: bytes) -> list[bytes]:
    prefix = f"\u2014 {origin} ".encode()
    found: list[bytes] = []
    for line in lines.split(b"\n")[:64]:
        if not line.startswith(prefix):
            continue
        try:
            blob = base64.b64decode(line[len(prefix) :], validate=True)
        except binascii.Error:
            continue
        if blob[:4] == _key_id(origin, key):
            found.append(blob[4:])
    return found


def _key_id(origin: str, key: bytes) -> bytes:
    return hashlib.sha256(origin.encode() + b"\n" + _ED25519 + key).digest()[:4]


def _is_path(path: Sequence[bytes]) -> bool:
    return len(path) <= MAX_PROOF_HASHES and all(len(each) == 32 for each in path)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
