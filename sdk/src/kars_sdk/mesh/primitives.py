"""Small cryptographic steps on `cryptography`, each with the check that is easily forgotten.

Domain labels are here, all of them, so that one signature or key can never stand in for another.
"""

import hashlib
import hmac

import xeddsa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kars_sdk.mesh.errors import HandshakeError

IDENTITY_LABEL = b"kars-mesh-identity-v1\0"
POSSESSION_LABEL = b"kars-mesh-possession-v1\0"
SIGNED_PREKEY_LABEL = b"kars-mesh-spk-v1\0"
KEM_PREKEY_LABEL = b"kars-mesh-kem-v1\0"
CONNECT_LABEL = b"kars-mesh-connect-v1\0"
ROTATE_LABEL = b"kars-mesh-rotate-v1\0"
KNOCK_LABEL = b"kars-mesh-knock-v1\0"
REJECT_LABEL = b"kars-mesh-reject-v1\0"

KEM_768 = 1
KEM_1024 = 2
"""Numbers of `kars.mesh.v1.KemAlgorithm`; they are part of what is signed."""

MLKEM768_PUBLIC_BYTES, MLKEM768_CIPHERTEXT_BYTES = 1184, 1088
MLKEM1024_PUBLIC_BYTES, MLKEM1024_CIPHERTEXT_BYTES = 1568, 1568

_P = 2**255 - 19
_LOW_ORDER_U = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
    }
)
"""u-coordinates of order 1, 2, 4 and 8 on Curve25519 and its twist, reduced modulo p."""


def hkdf(ikm: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """Derive keys with HKDF-SHA256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(ikm)


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """Return HMAC-SHA256."""
    return hmac.digest(key, data, "sha256")


def sha256(*parts: bytes) -> bytes:
    """Hash parts whose borders the caller's format makes unambiguous."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def verify(public_key: bytes, signature: bytes, label: bytes, message: bytes) -> bool:
    """Check an Ed25519 signature over a labelled message; False for anything that is not one."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, label + message)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_x25519(public_key: bytes, what: str) -> bytes:
    """Refuse points of low order: with them a shared secret is a constant, whoever holds the other key.

    Raises:
        HandshakeError: `public_key_length`, `low_order_point`.
    """
    if len(public_key) != 32:
        raise HandshakeError("public_key_length", f"{what} must have 32 bytes, got {len(public_key)}")
    u = (int.from_bytes(public_key, "little") & ((1 << 255) - 1)) % _P
    if u in _LOW_ORDER_U:
        raise HandshakeError("low_order_point", f"{what} is a point of low order")
    return public_key


def x25519_of_ed25519(identity_key: bytes) -> bytes:
    """Return the X25519 image of an identity key; there is one key, never two that must be kept equal.

    Raises:
        HandshakeError: `identity_key_invalid`, `low_order_point`.
    """
    if len(identity_key) != 32:
        raise HandshakeError("identity_key_invalid", "an identity key has 32 bytes")
    try:
        Ed25519PublicKey.from_public_bytes(identity_key)
        image = xeddsa.ed25519_pub_to_curve25519_pub(identity_key)
    except (ValueError, xeddsa.XEdDSAException) as exc:
        raise HandshakeError("identity_key_invalid", "the identity key is no usable Ed25519 point") from exc
    return check_x25519(image, "the identity key's image")


def kem_ciphertext_bytes(algorithm: int) -> int:
    """Return the ciphertext's length of a KEM.

    Raises:
        HandshakeError: `kem_unknown`.
    """
    if algorithm == KEM_1024:
        return MLKEM1024_CIPHERTEXT_BYTES
    if algorithm == KEM_768:
        return MLKEM768_CIPHERTEXT_BYTES
    raise HandshakeError("kem_unknown", f"KEM algorithm {algorithm} is not known here")


def encapsulate(algorithm: int, public_key: bytes) -> tuple[bytes, bytes]:
    """Return (shared secret, ciphertext) for a KEM key.

    Raises:
        HandshakeError: `kem_unknown`, `kem_key_invalid`.
    """
    kem_ciphertext_bytes(algorithm)
    try:
        if algorithm == KEM_1024:
            return MLKEM1024PublicKey.from_public_bytes(public_key).encapsulate()
        return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()
    except ValueError as exc:
        raise HandshakeError("kem_key_invalid", "the KEM public key is not valid (FIPS 203, 7.2)") from exc


def decapsulate(algorithm: int, seed: bytes, ciphertext: bytes) -> bytes:
    """Return the shared secret; a wrong ciphertext gives another one (implicit rejection), not an error.

    Raises:
        HandshakeError: `kem_unknown`, `kem_ciphertext_length`.
    """
    if len(ciphertext) != kem_ciphertext_bytes(algorithm):
        raise HandshakeError("kem_ciphertext_length", f"a KEM ciphertext has {len(ciphertext)} bytes")
    if algorithm == KEM_1024:
        return MLKEM1024PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext)
    return MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext)
