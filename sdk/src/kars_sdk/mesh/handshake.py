"""PQXDH: X3DH from the `X3DH` package, and an ML-KEM-1024 secret, into one set of session keys.

`x3dh.BaseState` is given the signed prekey and at most one one-time prekey, for one agreement; it keeps none
of ours. The KEM secret joins X3DH's output in one HKDF whose salt is the hash of the whole KNOCK: names,
keys, ids, ciphertext and time. Suites have labels of their own, so that none can be taken for another.
"""

import secrets
from dataclasses import dataclass

import x3dh
import xeddsa
from x3dh.identity_key_pair import IdentityKeyPairSeed
from x3dh.models import BaseStateModel, SignedPreKeyPairModel

from kars_sdk.mesh import knock as knocks
from kars_sdk.mesh import primitives
from kars_sdk.mesh.bundles import VerifiedBundle
from kars_sdk.mesh.codec import Writer
from kars_sdk.mesh.errors import HandshakeError
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.knock import Handshake, Knock
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.prekeys import PrivatePrekeys
from kars_sdk.mesh.ratchet_parts import now as run_now
from kars_sdk.mesh.session import SessionKeys
from kars_sdk.mesh.statements import SignedStatement, Statement

_FORMAT = x3dh.IdentityKeyFormat.ED_25519
_SUITES = {
    0: b"kars-mesh-v1 X3DH X25519 SHA-256",
    primitives.KEM_768: b"kars-mesh-v1 PQXDH X25519 ML-KEM-768 SHA-256",
    primitives.KEM_1024: b"kars-mesh-v1 PQXDH X25519 ML-KEM-1024 SHA-256",
}


class _State(x3dh.BaseState):
    """X3DH with our encodings: the label of a signed prekey is part of what is signed."""

    @staticmethod
    def _encode_public_key(key_format: x3dh.IdentityKeyFormat, pub: bytes) -> bytes:
        if key_format is x3dh.IdentityKeyFormat.CURVE_25519:
            return primitives.SIGNED_PREKEY_LABEL + pub
        return b"kars-mesh-ik-v1\0" + pub


@dataclass(frozen=True, kw_only=True)
class Initiated:
    """What the one who knocks has: the KNOCK and the session's keys."""

    knock: Knock
    keys: SessionKeys


def initiate(
    identity: IdentityKey, *, own: PeerName, statement: SignedStatement, verified: VerifiedBundle,
    purpose: str, now: float,
) -> Initiated:  # fmt: skip
    """Agree on keys with a peer that may be away.

    Raises:
        HandshakeError: `key_agreement_failed`, `kem_key_invalid`.
    """
    bundle, peer_key = verified.bundle, verified.statement.identity_key
    one_time, kem = bundle.one_time_prekey, bundle.kem_prekey
    public = x3dh.Bundle(
        peer_key,
        bundle.signed_prekey.public_key,
        bundle.signed_prekey.signature,
        frozenset() if one_time is None else frozenset({one_time.public_key}),
    )
    try:
        secret, pair, header = run_now(
            _state(identity, secrets.token_bytes(32), bytes(64), None).get_shared_secret_active(
                public, require_pre_key=False
            )
        )
    except (x3dh.KeyAgreementException, xeddsa.XEdDSAException) as exc:
        raise HandshakeError("key_agreement_failed", f"no keys could be agreed with {verified.peer}") from exc
    kem_secret = ciphertext = b""
    if kem is not None:
        kem_secret, ciphertext = primitives.encapsulate(kem.algorithm, kem.public_key)
    knock = knocks.create(
        identity, sender=own, recipient=verified.peer, recipient_key=peer_key, purpose=purpose,
        nonce=secrets.token_bytes(16), at_ms=int(now * 1000), statement=statement,
        handshake=Handshake(
            ephemeral_key=header.ephemeral_key, signed_prekey_id=bundle.signed_prekey.key_id,
            one_time_id=None if one_time is None else one_time.key_id,
            kem_algorithm=0 if kem is None else kem.algorithm, kem_id=0 if kem is None else kem.key_id,
            kem_ciphertext=ciphertext,
        ),
    )  # fmt: skip
    kem_public = b"" if kem is None else kem.public_key
    return Initiated(
        knock=knock,
        keys=session_keys(
            knock,
            secret=secret,
            kem_secret=kem_secret,
            pair=pair,
            signed_prekey=bundle.signed_prekey.public_key,
            kem_public=kem_public,
        ),
    )


def accept(
    identity: IdentityKey, *, knock: Knock, statement: Statement, private: PrivatePrekeys
) -> SessionKeys:
    """Derive the keys of a KNOCK that was verified and let in. Deletes nothing.

    Raises:
        HandshakeError: `key_agreement_failed`, `low_order_point`, `kem_unknown`, `kem_ciphertext_length`.
    """
    shake = knock.handshake
    primitives.check_x25519(shake.ephemeral_key, "the ephemeral key")
    state = _state(identity, private.signed, private.signed_signature, private.one_time)
    bundle = state.bundle
    header = x3dh.Header(
        statement.identity_key, shake.ephemeral_key, bundle.signed_pre_key, next(iter(bundle.pre_keys), None)
    )
    try:
        secret, pair, _ = run_now(state.get_shared_secret_passive(header, require_pre_key=False))
    except (x3dh.KeyAgreementException, xeddsa.XEdDSAException) as exc:
        raise HandshakeError("key_agreement_failed", f"no keys could be agreed with {knock.sender}") from exc
    kem_secret = b""
    if private.kem_seed is not None:
        kem_secret = primitives.decapsulate(shake.kem_algorithm, private.kem_seed, shake.kem_ciphertext)
    return session_keys(
        knock,
        secret=secret,
        kem_secret=kem_secret,
        pair=pair,
        signed_prekey=bundle.signed_pre_key,
        kem_public=private.kem_public,
    )


def _state(identity: IdentityKey, signed: bytes, signature: bytes, one_time: bytes | None) -> _State:
    return _State.from_model(
        BaseStateModel(
            identity_key=IdentityKeyPairSeed(identity.seed).model,
            signed_pre_key=SignedPreKeyPairModel(priv=signed, sig=signature, timestamp=0),
            old_signed_pre_key=None,
            pre_keys=frozenset() if one_time is None else frozenset({one_time}),
        ),
        identity_key_format=_FORMAT,
        hash_function=x3dh.HashFunction.SHA_256,
        info=b"kars-mesh-v1 X3DH",
    )


def session_keys(
    knock: Knock, *, secret: bytes, kem_secret: bytes, pair: bytes, signed_prekey: bytes, kem_public: bytes
) -> SessionKeys:
    """Derive all keys. The KEM's public key is bound too: a ciphertext must not fit another key."""
    transcript = (
        Writer().variable(knock.signed).variable(pair).raw(signed_prekey).variable(kem_public).bytes()
    )
    digest = primitives.sha256(b"kars-mesh-v1 transcript\0", transcript)
    info = _SUITES[knock.handshake.kem_algorithm]
    keys = primitives.hkdf(secret + kem_secret, salt=digest, info=info, length=128)
    names = Writer().text(knock.sender).text(knock.recipient).variable(pair).raw(digest).bytes()
    return SessionKeys(
        session_id=knock.knock_id,
        root=keys[:32],
        epoch_root=keys[32:64],
        initiator_header_key=keys[64:96],
        responder_header_key=keys[96:],
        associated_data=primitives.sha256(b"kars-mesh-v1 associated data\0", names),
    )
