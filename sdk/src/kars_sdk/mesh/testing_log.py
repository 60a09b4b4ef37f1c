"""A registration log for tests: RFC 9162 written down as its definitions read, slow and plain."""

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def _hash(prefix: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(prefix + b"".join(parts)).digest()


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)


class TreeLog:
    """Leaves, proofs and signed heads."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.leaves: list[bytes] = []
        self._key = Ed25519PrivateKey.generate()

    def append(self, **members: object) -> tuple[int, bytes]:
        """Add a leaf; returns its index and bytes."""
        record = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
        self.leaves.append(record)
        return len(self.leaves) - 1, record

    def root(self, start: int, end: int) -> bytes:
        """Return the hash of a range of leaves."""
        if end == start:
            return hashlib.sha256(b"").digest()
        if end - start == 1:
            return _hash(b"\x00", self.leaves[start])
        middle = start + _split(end - start)
        return _hash(b"\x01", self.root(start, middle), self.root(middle, end))

    def inclusion(self, index: int, start: int, end: int) -> list[bytes]:
        """Return the audit path of a leaf."""
        if end - start == 1:
            return []
        middle = start + _split(end - start)
        if index < middle:
            return [*self.inclusion(index, start, middle), self.root(middle, end)]
        return [*self.inclusion(index, middle, end), self.root(start, middle)]

    def consistency(self, old: int, start: int, end: int, *, whole: bool = True) -> list[bytes]:
        """Return the proof that a tree of `end` leaves grew from one of `old`."""
        if old == end:
            return [] if whole else [self.root(start, end)]
        middle = start + _split(end - start)
        if old <= middle:
            return [*self.consistency(old, start, middle, whole=whole), self.root(middle, end)]
        return [*self.consistency(old, middle, end, whole=False), self.root(start, middle)]

    @property
    def verifier_key(self) -> str:
        """The key in C2SP form."""
        key = self._key.public_key().public_bytes_raw()
        encoded = base64.b64encode(b"\x01" + key).decode()
        return f"{self.origin}+{self._key_id().hex()}+{encoded}"

    def head(self, size: int | None = None) -> bytes:
        """Return a signed head."""
        size = len(self.leaves) if size is None else size
        text = f"{self.origin}\n{size}\n{base64.b64encode(self.root(0, size)).decode()}\n"
        blob = base64.b64encode(self._key_id() + self._key.sign(text.encode())).decode()
        return f"{text}\n\u2014 {self.origin} {blob}\n".encode()

    def _key_id(self) -> bytes:
        key = self._key.public_key().public_bytes_raw()
        return hashlib.sha256(self.origin.encode() + b"\n\x01" + key).digest()[:4]
