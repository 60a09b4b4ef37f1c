"""Sign bundles and verify them: Ed25519 over a domain-separated payload.

Verification is a pure function of its arguments; it says whether a bundle may come into force, and
never what to do instead.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from kars.policy.v1 import policy_pb2

from kars_common.errors import InvalidInputError
from kars_common.policy import bundles
from kars_common.policy.errors import PolicyRefusedError, Refusal

_SIGNED_PREFIX = b"kars.policy.v1\x00"


def key_id(public_key: Ed25519PublicKey) -> str:
    """Return the name of a signing key: base64url(SHA-256(raw key)), 16 characters of it."""
    hashed = hashlib.sha256(public_key.public_bytes_raw()).digest()
    return base64.urlsafe_b64encode(hashed).decode()[:16]


def sign(payload: bytes, key: Ed25519PrivateKey) -> policy_pb2.SignedBundle:
    """Return the payload as it travels: with digest, signature and key name."""
    return policy_pb2.SignedBundle(
        payload=payload,
        digest=bundles.digest(payload),
        signature=key.sign(_SIGNED_PREFIX + payload),
        key_id=key_id(key.public_key()),
    )


def verify(
    signed: policy_pb2.SignedBundle,
    keys: Mapping[str, Ed25519PublicKey],
    sandbox: tuple[str, str],
    min_version: int,
) -> policy_pb2.PolicyBundle:
    """Return the bundle if it may come into force.

    The signature is checked before anything is parsed, so only the holder of a key can reach a parser.

    Args:
        signed: what arrived, or was kept on disk.
        keys: trusted keys by `key_id`.
        sandbox: namespace and name that the bundle must be for.
        min_version: the lowest version that is no rollback.

    Raises:
        PolicyRefusedError: with the NACK reason.
    """
    payload = signed.payload
    if len(payload) > bundles.MAX_PAYLOAD_BYTES:
        raise PolicyRefusedError(Refusal.TOO_LARGE, f"payload has {len(payload)} bytes")
    _check_signature(signed, keys)
    if bundles.digest(payload) != signed.digest:
        raise PolicyRefusedError(Refusal.DIGEST_MISMATCH, "digest is not that of the payload")
    bundle = bundles.parse_payload(payload)
    named = (bundle.sandbox.namespace, bundle.sandbox.name)
    if named != sandbox:
        raise PolicyRefusedError(
            Refusal.WRONG_SANDBOX,
            f"bundle is for {named[0]}/{named[1]}, this enforces {sandbox[0]}/{sandbox[1]}",
        )
    if bundle.version < max(min_version, 1):
        raise PolicyRefusedError(
            Refusal.VERSION_ROLLBACK, f"version must be at least {max(min_version, 1)}, got {bundle.version}"
        )
    return bundle


def load_keys(path: Path) -> dict[str, Ed25519PublicKey]:
    """Read trusted keys: a JSON list of `{"keyId", "publicKey"}`, the key raw in base64.

    Raises:
        InvalidInputError: `policy_keys_invalid` when the file is absent, malformed or a name does not fit
            its key.
    """
    try:
        entries = orjson.loads(path.read_bytes())
        keys = {
            str(entry["keyId"]): Ed25519PublicKey.from_public_bytes(
                base64.b64decode(entry["publicKey"], validate=True)
            )
            for entry in entries
        }
    except (OSError, ValueError, TypeError, KeyError, binascii.Error) as exc:
        raise InvalidInputError("policy_keys_invalid", f"cannot read policy keys from {path}") from exc
    for name, key in keys.items():
        if name != key_id(key):
            raise InvalidInputError("policy_keys_invalid", f"key named {name} is {key_id(key)}")
    return keys


def dump_keys(keys: Mapping[str, Ed25519PublicKey]) -> bytes:
    """Return the file that `load_keys` reads."""
    return orjson.dumps(
        [
            {"keyId": name, "publicKey": base64.b64encode(key.public_bytes_raw()).decode()}
            for name, key in sorted(keys.items())
        ]
    )


def _check_signature(signed: policy_pb2.SignedBundle, keys: Mapping[str, Ed25519PublicKey]) -> None:
    key = keys.get(signed.key_id)
    if key is None:
        raise PolicyRefusedError(Refusal.SIGNATURE_INVALID, "signed with a key that is not trusted here")
    try:
        key.verify(signed.signature, _SIGNED_PREFIX + signed.payload)
    except InvalidSignature as exc:
        raise PolicyRefusedError(Refusal.SIGNATURE_INVALID, "signature does not fit the payload") from exc
