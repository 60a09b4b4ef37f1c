"""Identity statements: the controller's word that a key belongs to a peer.

The signature is checked before anything is parsed. A statement has one form (RFC 8785, exactly five members),
so its hash names it in the registration log. A key speaks only of the trust domain that policy gives it.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars.mesh.v1 import identity_pb2
from kars_common.errors import InvalidInputError, UnauthenticatedError
from kars_common.spiffe import SpiffeId

PREFIX = b"kars-mesh-identity-v1\x00"
MAX_STATEMENT_BYTES = 4096

_MEMBERS = {"identityKey", "notAfter", "notBefore", "peer", "serial"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_MAX_SERIAL = 2**53 - 1
_P = 2**255 - 19
_EIGHTH = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_LOW_ORDER = frozenset(y.to_bytes(32, "little") for y in (0, 1, _P - 1, _P, _P + 1, _EIGHTH, _P - _EIGHTH))
"""The y coordinates of the eight points of low order, all encodings but for the sign bit."""


@dataclass(frozen=True, kw_only=True)
class TrustedKey:
    """A key that statements may be signed with, and about whom."""

    key: Ed25519PublicKey
    trust_domain: str


StatementKeys = Mapping[str, TrustedKey]
"""Trusted keys by key id."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A verified identity statement."""

    peer: SpiffeId
    identity_key: Ed25519PublicKey
    not_before: datetime
    not_after: datetime
    serial: int
    signed: identity_pb2.SignedStatement

    @property
    def identity_key_raw(self) -> bytes:
        """The key as 32 bytes."""
        return self.identity_key.public_bytes_raw()


def verify_statement(
    signed: identity_pb2.SignedStatement, keys: StatementKeys, now: datetime | None = None
) -> Statement:
    """Return what a statement says, if it may be believed now.

    Raises:
        UnauthenticatedError: `identity_statement_invalid`; the message says which check failed.
    """
    if not 0 < len(signed.statement) <= MAX_STATEMENT_BYTES:
        raise _invalid(f"it must have 1 to {MAX_STATEMENT_BYTES} bytes, got {len(signed.statement)}")
    trusted = keys.get(signed.key_id)
    if trusted is None:
        raise _invalid("it is signed with a key that policy does not name")
    try:
        trusted.key.verify(signed.signature, PREFIX + signed.statement)
    except InvalidSignature as exc:
        raise _invalid("its signature does not verify") from exc
    statement = _parse(signed)
    if statement.peer.trust_domain != trusted.trust_domain:
        raise _invalid(f"its key may not speak of {statement.peer.trust_domain}")
    if not statement.not_before <= (now or datetime.now(UTC)) < statement.not_after:
        raise _invalid("it is not valid now; ask the controller for a new one")
    return statement


def _parse(signed: identity_pb2.SignedStatement) -> Statement:
    try:
        fields = orjson.loads(signed.statement)
    except orjson.JSONDecodeError as exc:
        raise _invalid("it is not JSON") from exc
    if not isinstance(fields, dict) or set(fields) != _MEMBERS:
        raise _invalid(f"it must have exactly the members {', '.join(sorted(_MEMBERS))}")
    serial = fields["serial"]
    if type(serial) is not int or not 1 <= serial <= _MAX_SERIAL:
        raise _invalid("serial must be an integer from 1 to 2^53-1")
    try:
        canonical = rfc8785.dumps(fields)
    except rfc8785.CanonicalizationError as exc:
        raise _invalid("it has a value that has no canonical form") from exc
    if canonical != signed.statement:
        raise _invalid("it is not in canonical form")
    return Statement(
        peer=_peer(fields["peer"]),
        identity_key=_key(fields["identityKey"]),
        not_before=_moment(fields["notBefore"]),
        not_after=_moment(fields["notAfter"]),
        serial=serial,
        signed=signed,
    )


def _peer(value: object) -> SpiffeId:
    try:
        peer = SpiffeId.parse(value) if isinstance(value, str) else None
    except InvalidInputError as exc:
        raise _invalid("peer is no SPIFFE id") from exc
    if peer is None or peer.sandbox_ref is None:
        raise _invalid("peer is not the SPIFFE id of a sandbox")
    return peer


def _key(value: object) -> Ed25519PublicKey:
    text = value if isinstance(value, str) else ""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _invalid("identityKey is not base64url") from exc
    if len(raw) != 32 or base64.urlsafe_b64encode(raw).decode().rstrip("=") != text:
        raise _invalid("identityKey is not 32 bytes in base64url without padding")
    if raw[:31] + bytes((raw[31] & 0x7F,)) in _LOW_ORDER:
        raise _invalid("identityKey is a point of low order, under which anybody can sign")
    return Ed25519PublicKey.from_public_bytes(raw)


def _moment(value: object) -> datetime:
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise _invalid("a moment must have the form 2026-11-24T15:00:00Z")
    try:
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as exc:
        raise _invalid("a moment is no date") from exc


def _invalid(what: str) -> UnauthenticatedError:
    return UnauthenticatedError("identity_statement_invalid", f"identity statement refused: {what}")
