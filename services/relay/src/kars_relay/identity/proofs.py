"""Proofs that somebody holds an identity key: each bound to one purpose, one relay and one nonce."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars_common.errors import UnauthenticatedError

_CONNECT = b"kars-mesh-connect-v1\x00"
_ROTATE = b"kars-mesh-rotate-v1\x00"


def connect_message(nonce: bytes, relay: str, peer: str) -> bytes:
    """Return what a connecting peer signs."""
    return _CONNECT + nonce + relay.encode() + b"\x00" + peer.encode()


def check_connect_proof(key: Ed25519PublicKey, proof: bytes, *, nonce: bytes, relay: str, peer: str) -> None:
    """Pass, or refuse a connection.

    Raises:
        UnauthenticatedError: `connect_proof_invalid`.
    """
    try:
        key.verify(proof, connect_message(nonce, relay, peer))
    except InvalidSignature as exc:
        raise UnauthenticatedError(
            "connect_proof_invalid", "the proof was not made with the identity key for this connection"
        ) from exc


def check_continuity(old: Ed25519PublicKey, proof: bytes, statement: bytes) -> None:
    """Pass, or refuse the old key's signature under a statement about a new one.

    Raises:
        UnauthenticatedError: `continuity_proof_invalid`.
    """
    try:
        old.verify(proof, _ROTATE + statement)
    except InvalidSignature as exc:
        raise UnauthenticatedError(
            "continuity_proof_invalid", "the key before did not sign this change"
        ) from exc
