"""A peer's mesh identity: one Ed25519 key that the agent's own process made from the system's randomness.

The X25519 key for the handshake is its birational image. There is no second key, no seed that is derived from
something public, and no way to import a key from text.
"""

import base64

import xeddsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kars_sdk.mesh import primitives
from kars_sdk.mesh.names import PeerName

_FINGERPRINT_ROUNDS = 5200
"""As Signal's safety numbers: makes a search for a key with a similar number costly."""


class IdentityKey:
    """The private identity key of this process."""

    __slots__ = ("_key", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        """Take up a key that `generate` made, as the store kept it."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.seed = seed
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "IdentityKey":
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def x25519_private(self) -> bytes:
        """The key agreement's private key."""
        return xeddsa.seed_to_priv(self.seed)

    def sign(self, label: bytes, message: bytes) -> bytes:
        """Sign a labelled message."""
        return self._key.sign(label + message)

    def possession_proof(self, peer: PeerName) -> bytes:
        """Prove to the controller that this process holds the key it asks a statement for."""
        return self.sign(primitives.POSSESSION_LABEL, peer.encode())

    def connect_proof(self, *, nonce: bytes, relay: str, peer: PeerName) -> bytes:
        """Prove it to a relay: bound to this stream, this relay and this purpose."""
        return self.sign(primitives.CONNECT_LABEL, nonce + relay.encode() + b"\0" + peer.encode())


def key_id(public_key: bytes) -> str:
    """Return the short name of a public key, as contracts carry it."""
    return base64url(primitives.sha256(public_key))[:16]


def base64url(data: bytes) -> str:
    """Return base64url without padding (RFC 4648, 5), as statements carry keys."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def fingerprint(*, own: PeerName, own_key: bytes, peer: PeerName, peer_key: bytes) -> str:
    """Return the safety number of two peers: both see the same, and any swapped key changes it.

    Twelve groups of five digits. People compare it over another way than the mesh.
    """
    halves = sorted((_half(own, own_key), _half(peer, peer_key)))
    digits = "".join(halves)
    return " ".join(digits[at : at + 5] for at in range(0, len(digits), 5))


def _half(peer: PeerName, public_key: bytes) -> str:
    name = peer.encode()
    digest = b"kars-mesh-fingerprint-v1\0" + public_key + name
    for _ in range(_FINGERPRINT_ROUNDS):
        digest = primitives.sha256(digest, public_key)
    return "".join(f"{int.from_bytes(digest[at : at + 5], 'big') % 100000:05}" for at in range(0, 30, 5))
