"""Keys of card signatures: EdDSA (Ed25519) and ES256 (P-256), nothing else.

A signing key comes from a PEM file, a verification key from a JWK. Each key has one algorithm and is never
used with another.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey

from kars_common.agent_cards._jws import REGISTRY
from kars_common.errors import InvalidInputError

_MAX_KEY_BYTES = 16 * 1024
Jwk = ECKey | OKPKey


@dataclass(frozen=True, kw_only=True)
class CardKey:
    """A public key that verifies cards."""

    kid: str
    algorithm: str
    jwk: Jwk = field(repr=False)
    not_after: datetime | None = None

    @classmethod
    def from_jwk(cls, jwk: str | bytes, *, kid: str = "", not_after: datetime | None = None) -> Self:
        """Read a public JWK.

        Raises:
            InvalidInputError: `card_key_invalid`.
        """
        try:
            document: dict[str, Any] = orjson.loads(jwk)
            key = _import(document)
        except (ValueError, TypeError, KeyError, JoseError) as exc:
            raise InvalidInputError("card_key_invalid", "not a public JWK of Ed25519 or P-256") from exc
        if "d" in document:
            raise InvalidInputError("card_key_invalid", "this JWK is a private key")
        name = kid or str(document.get("kid", ""))
        if not name:
            raise InvalidInputError("card_key_invalid", "a card key needs a kid")
        return cls(kid=name, algorithm=_algorithm(key), jwk=key, not_after=not_after)


@dataclass(frozen=True, kw_only=True)
class CardSigningKey:
    """A private key that signs cards."""

    kid: str
    algorithm: str
    jwk: Jwk = field(repr=False)

    def sign(self, payload: bytes, header: Mapping[str, str] | None = None) -> str:
        """Return a compact JWS over any payload; `alg`, `kid` and `typ` are set here."""
        protected = {**(header or {}), "alg": self.algorithm, "kid": self.kid, "typ": "JOSE"}
        return jws.serialize_compact(protected, payload, self.jwk, registry=REGISTRY)

    def public(self) -> CardKey:
        """Return the half that verifies."""
        return CardKey.from_jwk(orjson.dumps(self.public_jwk()))

    def public_jwk(self) -> dict[str, Any]:
        """Return the public JWK with `kid`, `alg` and `use`."""
        document = {str(name): value for name, value in self.jwk.as_dict(private=False).items()}
        return {**document, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    @classmethod
    def from_pem(cls, pem: bytes, *, kid: str = "") -> Self:
        """Read a private key; without a `kid` it is named by its RFC 7638 thumbprint.

        Raises:
            InvalidInputError: `card_key_invalid`.
        """
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as exc:
            raise InvalidInputError("card_key_invalid", "not an unencrypted PEM private key") from exc
        key: Jwk
        if isinstance(private, Ed25519PrivateKey):
            key = OKPKey.import_key(pem)
        elif isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1):
            key = ECKey.import_key(pem)
        else:
            raise InvalidInputError("card_key_invalid", "a card is signed with Ed25519 or P-256")
        return cls(kid=kid or _thumbprint(key), algorithm=_algorithm(key), jwk=key)


def load_signing_key(path: Path, *, kid: str = "") -> CardSigningKey:
    """Read a signing key from a file that others cannot read.

    Raises:
        InvalidInputError: `card_key_invalid`, `card_key_exposed`.
    """
    try:
        if path.stat().st_mode & 0o007:
            raise InvalidInputError("card_key_exposed", f"{path} must not be open to other users")
        with path.open("rb") as file:
            pem = file.read(_MAX_KEY_BYTES)
    except OSError as exc:
        raise InvalidInputError("card_key_invalid", f"cannot read {path}") from exc
    return CardSigningKey.from_pem(pem, kid=kid)


def _import(document: dict[str, Any]) -> Jwk:
    if document["kty"] == "OKP" and document["crv"] == "Ed25519":
        return OKPKey.import_key(document)
    if document["kty"] == "EC" and document["crv"] == "P-256":
        return ECKey.import_key(document)
    raise ValueError("unsupported key")


def _algorithm(key: Jwk) -> str:
    return "EdDSA" if isinstance(key, OKPKey) else "ES256"


def _thumbprint(key: Jwk) -> str:
    members = {name: key.as_dict(private=False)[name] for name in sorted(key.as_dict(private=False))}
    required = {name: members[name] for name in ("crv", "kty", "x", "y") if name in members}
    hashed = hashlib.sha256(orjson.dumps(required, option=orjson.OPT_SORT_KEYS)).digest()
    return base64.urlsafe_b64encode(hashed).rstrip(b"=").decode()
