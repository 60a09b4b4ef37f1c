"""KNOCK: the signed request to talk. It carries the handshake, and is decided before any key is agreed.

The sender signs with its identity key: both names, the key it believes the receiver to have, a nonce, the
time, the purpose, and every part of the handshake. A rejection is signed as well, and bound to the KNOCK that
it answers; anything else that claims to be one is ignored.
"""

import re
from dataclasses import dataclass

from kars_sdk.mesh import primitives
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import ForgedError, HandshakeError, IdentityError, MalformedError
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.names import MAX_NAME_BYTES, PeerName, peer_name
from kars_sdk.mesh.statements import MAX_STATEMENT_BYTES, SignedStatement, Statement, TrustKeys

MAX_KNOCK_BYTES = 12 * 1024
MAX_AGE_S = 7 * 86400
"""As long as a relay keeps mail."""
MAX_AHEAD_S = 300
PURPOSE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REASON = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """The public parts of a key agreement. `kem_algorithm` 0: classic, without a KEM."""

    ephemeral_key: bytes
    signed_prekey_id: int
    one_time_id: int | None
    kem_algorithm: int
    kem_id: int
    kem_ciphertext: bytes


@dataclass(frozen=True, kw_only=True)
class Knock:
    """A KNOCK as it was read; `verify` says whether to believe it."""

    sender: PeerName
    recipient: PeerName
    recipient_key: bytes
    purpose: str
    nonce: bytes
    at_ms: int
    identity: SignedStatement
    handshake: Handshake
    signed: bytes
    signature: bytes

    @property
    def knock_id(self) -> bytes:
        """What rejections and replay protection call it. It is the session's id, too."""
        return knock_id(self.signed)

    @property
    def block(self) -> bytes:
        """The bytes that travel."""
        return Writer().variable(self.signed).raw(self.signature).bytes()


def knock_id(signed: bytes) -> bytes:
    """Return the id of a KNOCK from the bytes that were signed."""
    return primitives.sha256(b"kars-mesh-v1 knock id\0", signed)[:16]


def create(
    identity: IdentityKey, *, sender: PeerName, recipient: PeerName, recipient_key: bytes, purpose: str,
    nonce: bytes, at_ms: int, statement: SignedStatement, handshake: Handshake,
) -> Knock:  # fmt: skip
    """Sign a KNOCK."""
    if not PURPOSE.fullmatch(purpose):
        raise MalformedError(
            "purpose_invalid", f"a purpose has 1 to 64 of a-z 0-9 . _ -, got {purpose[:64]!r}"
        )
    writer = (
        Writer().u8(1).text(sender).text(recipient).raw(recipient_key).text(purpose).raw(nonce).u64(at_ms)
    )
    writer.variable(statement.statement).raw(statement.signature).text(statement.key_id)
    writer.raw(handshake.ephemeral_key).u32(handshake.signed_prekey_id)
    writer.u8(handshake.one_time_id is not None).u32(handshake.one_time_id or 0)
    writer.u8(handshake.kem_algorithm).u32(handshake.kem_id).variable(handshake.kem_ciphertext)
    signed = writer.bytes()
    return Knock(
        sender=sender, recipient=recipient, recipient_key=recipient_key, purpose=purpose, nonce=nonce,
        at_ms=at_ms, identity=statement, handshake=handshake, signed=signed,
        signature=identity.sign(primitives.KNOCK_LABEL, signed),
    )  # fmt: skip


def read(signed: bytes, signature: bytes) -> Knock:
    """Read a KNOCK; nothing in it is believed yet.

    Raises:
        MalformedError, IdentityError: it is none.
    """
    reader = Reader(signed, what="KNOCK", max_bytes=MAX_KNOCK_BYTES)
    if reader.u8() != 1:
        raise MalformedError("knock_version", "the KNOCK is of an unknown version")
    sender, recipient = peer_name(reader.text(MAX_NAME_BYTES)), peer_name(reader.text(MAX_NAME_BYTES))
    recipient_key, purpose = reader.raw(32), reader.text(64)
    if not PURPOSE.fullmatch(purpose):
        raise MalformedError("purpose_invalid", "the KNOCK's purpose is not a valid word")
    nonce, at_ms = reader.raw(16), reader.u64()
    identity = SignedStatement(
        statement=reader.variable(MAX_STATEMENT_BYTES), signature=reader.raw(64), key_id=reader.text(64)
    )
    ephemeral_key, signed_prekey_id = reader.raw(32), reader.u32()
    has_one_time, one_time = reader.flag(), reader.u32()
    algorithm, kem_id = reader.u8(), reader.u32()
    ciphertext = reader.variable(primitives.MLKEM1024_CIPHERTEXT_BYTES)
    reader.end()
    return Knock(
        sender=sender, recipient=recipient, recipient_key=recipient_key, purpose=purpose, nonce=nonce,
        at_ms=at_ms, identity=identity, signed=signed, signature=signature,
        handshake=Handshake(
            ephemeral_key=ephemeral_key, signed_prekey_id=signed_prekey_id,
            one_time_id=one_time if has_one_time else None, kem_algorithm=algorithm, kem_id=kem_id,
            kem_ciphertext=ciphertext,
        ),
    )  # fmt: skip


def verify(
    knock: Knock, *, own: PeerName, own_key: bytes, trust: TrustKeys, now: float, transport_sender: str | None
) -> Statement:
    """Check that a KNOCK is the sender's own word, meant for us, and fresh.

    `transport_sender` is whom the relay says it came from; None for a sealed sender.

    Raises:
        IdentityError: `knock_sender_mismatch`, or the statement's, see `TrustKeys.verify`.
        ForgedError: `knock_forged`.
        HandshakeError: `knock_not_for_us`, `knock_for_other_key`, `knock_stale`, `knock_from_the_future`.
    """
    if transport_sender is not None and transport_sender != knock.sender:
        raise IdentityError(
            "knock_sender_mismatch", f"{transport_sender[:128]!r} delivered a KNOCK of {knock.sender}"
        )
    if knock.recipient != own:
        raise HandshakeError("knock_not_for_us", "the KNOCK is addressed to another peer")
    statement = trust.verify(knock.identity, now=now, peer=knock.sender)
    if not primitives.verify(statement.identity_key, knock.signature, primitives.KNOCK_LABEL, knock.signed):
        raise ForgedError("knock_forged", f"the KNOCK is not signed by {knock.sender}")
    if knock.recipient_key != own_key:
        raise HandshakeError("knock_for_other_key", f"{knock.sender} knocked for a key that is not ours")
    if knock.at_ms / 1000 < now - MAX_AGE_S:
        raise HandshakeError("knock_stale", "the KNOCK is older than any relay keeps mail")
    if knock.at_ms / 1000 > now + MAX_AHEAD_S:
        raise HandshakeError("knock_from_the_future", "the KNOCK's time lies ahead of ours")
    return statement


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A verified "no"."""

    knock_id: bytes
    reason: str
    retry_after_s: int


def reject(
    identity: IdentityKey, *, own: PeerName, knock: Knock, reason: str, retry_after_s: int, at_ms: int
) -> bytes:
    """Sign a rejection of a KNOCK."""
    signed = Writer().u8(1).raw(knock.knock_id).text(own).text(knock.sender).text(reason)
    body = signed.u32(retry_after_s).u64(at_ms).bytes()
    return Writer().variable(body).raw(identity.sign(primitives.REJECT_LABEL, body)).bytes()


def read_rejection(data: bytes, *, own: PeerName, peer: PeerName, peer_key: bytes) -> Rejection:
    """Read and verify a rejection that `peer` is said to have sent.

    Raises:
        MalformedError: it is none.
        ForgedError: `rejection_forged`: not signed by that peer, or not between these two.
    """
    outer = Reader(data, what="rejection", max_bytes=4096)
    body, signature = outer.variable(2048), outer.raw(64)
    outer.end()
    reader = Reader(body, what="rejection", max_bytes=2048)
    if reader.u8() != 1:
        raise MalformedError("rejection_version", "the rejection is of an unknown version")
    identifier, sender, recipient = reader.raw(16), reader.text(MAX_NAME_BYTES), reader.text(MAX_NAME_BYTES)
    reason, retry_after_s, _ = reader.text(64), reader.u32(), reader.u64()
    reader.end()
    if not _REASON.fullmatch(reason):
        raise MalformedError("rejection_reason", "the rejection's reason is not a valid word")
    signed = primitives.verify(peer_key, signature, primitives.REJECT_LABEL, body)
    if not signed or sender != peer or recipient != own:
        raise ForgedError("rejection_forged", f"the rejection is not one of {peer} for us")
    return Rejection(knock_id=identifier, reason=reason, retry_after_s=retry_after_s)
