"""Signed identity statements: the controller's word that a name and an identity key belong together.

The registry is not believed. A statement is checked with keys that the platform mounts into the sandbox; each
of them may speak of one trust domain only. What is checked are the exact bytes that were signed.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kars_sdk.mesh import identity, primitives
from kars_sdk.mesh.errors import HandshakeError, IdentityError
from kars_sdk.mesh.names import PeerName, peer_name, trust_domain

MAX_STATEMENT_BYTES = 4096
MAX_TRUST_FILE_BYTES = 1024 * 1024
CLOCK_SKEW_S = 60
_MEMBERS = {"peer", "identityKey", "notBefore", "notAfter", "serial"}
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, kw_only=True)
class SignedStatement:
    """A statement as the exact bytes that were signed; nothing in it has been checked."""

    statement: bytes
    signature: bytes
    key_id: str


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement that was checked."""

    peer: PeerName
    identity_key: bytes
    not_before: float
    not_after: float
    serial: int


@dataclass(frozen=True, kw_only=True)
class TrustKey:
    """A key that may sign statements about the peers of one trust domain."""

    public_key: bytes
    trust_domain: str


class TrustKeys:
    """Whose statements are believed."""

    def __init__(self, keys: Iterable[TrustKey]) -> None:
        self._keys: Mapping[str, TrustKey] = {identity.key_id(key.public_key): key for key in keys}

    @classmethod
    def from_json(cls, data: bytes) -> "TrustKeys":
        """Read the file that the platform mounts.

        `{"keys": [{"keyId": "...", "publicKey": "<base64url>", "trustDomain": "kars.local"}]}`

        Raises:
            IdentityError: `trust_keys_invalid`.
        """
        if len(data) > MAX_TRUST_FILE_BYTES:
            raise IdentityError("trust_keys_invalid", f"the trust keys file has {len(data)} bytes")
        try:
            keys = [_trust_key(entry) for entry in _json(data)["keys"]]
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            raise IdentityError("trust_keys_invalid", "the trust keys file is not as documented") from exc
        return cls(keys)

    def verify(
        self, signed: SignedStatement, *, now: float, peer: PeerName | None = None, key: bytes | None = None
    ) -> Statement:
        """Check a statement; with `peer` or `key`, also that it is about that name or key.

        Raises:
            IdentityError: `statement_malformed`, `statement_signer_unknown`, `statement_forged`,
                `statement_foreign_domain`, `statement_expired`, `statement_not_yet_valid`,
                `statement_other_peer`, `statement_other_key`.
        """
        signer = self._keys.get(signed.key_id)
        if signer is None:
            raise IdentityError("statement_signer_unknown", f"no trust key is called {signed.key_id[:32]!r}")
        if len(signed.statement) > MAX_STATEMENT_BYTES or not primitives.verify(
            signer.public_key, signed.signature, primitives.IDENTITY_LABEL, signed.statement
        ):
            raise IdentityError("statement_forged", "the identity statement's signature does not fit")
        statement = _parse(signed.statement)
        if trust_domain(statement.peer) != signer.trust_domain:
            raise IdentityError(
                "statement_foreign_domain",
                f"the key of {signer.trust_domain} does not speak of {statement.peer}",
            )
        if now >= statement.not_after + CLOCK_SKEW_S:
            raise IdentityError(
                "statement_expired", f"the identity statement of {statement.peer} has expired"
            )
        if now < statement.not_before - CLOCK_SKEW_S:
            raise IdentityError(
                "statement_not_yet_valid", f"the identity statement of {statement.peer} is not valid yet"
            )
        if peer is not None and statement.peer != peer:
            raise IdentityError("statement_other_peer", f"asked for {peer}, got one of {statement.peer}")
        if key is not None and statement.identity_key != key:
            raise IdentityError("statement_other_key", f"another key is stated for {statement.peer}")
        return statement


def _parse(data: bytes) -> Statement:
    try:
        document = _json(data)
        serial = _serial(document)
        key = _base64url(document["identityKey"])
        primitives.x25519_of_ed25519(key)
        return Statement(
            peer=peer_name(document["peer"]),
            identity_key=key,
            not_before=_time(document["notBefore"]),
            not_after=_time(document["notAfter"]),
            serial=serial,
        )
    except (KeyError, TypeError, ValueError, RecursionError, HandshakeError) as exc:
        raise IdentityError("statement_malformed", "the identity statement is not as documented") from exc


def _serial(document: dict[str, Any]) -> int:
    serial = document["serial"]
    if set(document) != _MEMBERS or type(serial) is not int or not 1 <= serial < 1 << 53:
        raise ValueError("exactly the documented members")
    return serial


def _json(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            raise ValueError("a member is there twice")
        return document

    document = json.loads(data.decode(), object_pairs_hook=unique)
    if not isinstance(document, dict):
        raise TypeError("not an object")
    return document


def _trust_key(entry: dict[str, Any]) -> TrustKey:
    key = TrustKey(public_key=_base64url(entry["publicKey"]), trust_domain=str(entry["trustDomain"]))
    if len(key.public_key) != 32 or entry["keyId"] != identity.key_id(key.public_key):
        raise ValueError("the key's id does not fit the key")
    return key


def _base64url(text: str) -> bytes:
    try:
        value = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc
    if base64.urlsafe_b64encode(value).rstrip(b"=").decode() != text:
        raise ValueError("not canonical base64url")
    return value


def _time(text: str) -> float:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
