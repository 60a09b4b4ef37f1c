"""What a registry hands out is checked here, before any of it is used; the registry is not believed."""

from dataclasses import dataclass

from kars_sdk.mesh import primitives
from kars_sdk.mesh.errors import HandshakeError
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.prekeys import Bundle
from kars_sdk.mesh.statements import Statement, TrustKeys


@dataclass(frozen=True, kw_only=True)
class VerifiedBundle:
    """A bundle whose every key was shown to be the peer's."""

    statement: Statement
    bundle: Bundle

    @property
    def peer(self) -> PeerName:
        """Whose it is."""
        return self.statement.peer


def verify(
    bundle: Bundle,
    *,
    peer: PeerName,
    trust: TrustKeys,
    now: float,
    allow_classic: bool,
    pinned_key: bytes | None = None,
) -> VerifiedBundle:
    """Check a bundle: statement, name, signatures, points, and that it is not a downgrade.

    With `pinned_key`, the identity key must also be that one.

    Raises:
        IdentityError: the statement, see `TrustKeys.verify`.
        HandshakeError: `prekey_forged`, `low_order_point`, `public_key_length`, `kem_missing`, `kem_unknown`.
    """
    statement = trust.verify(bundle.identity, now=now, peer=peer, key=pinned_key)
    identity = statement.identity_key
    primitives.x25519_of_ed25519(identity)
    signed = bundle.signed_prekey
    primitives.check_x25519(signed.public_key, "the signed prekey")
    if not primitives.verify(identity, signed.signature, primitives.SIGNED_PREKEY_LABEL, signed.public_key):
        raise HandshakeError("prekey_forged", f"the signed prekey is not signed by {peer}")
    if bundle.one_time_prekey is not None:
        primitives.check_x25519(bundle.one_time_prekey.public_key, "the one-time prekey")
    kem = bundle.kem_prekey
    if kem is None:
        if not allow_classic:
            raise HandshakeError(
                "kem_missing",
                f"{peer} has no post-quantum prekey, and policy does not allow a classic handshake",
            )
    else:
        primitives.kem_ciphertext_bytes(kem.algorithm)
        message = bytes((kem.algorithm,)) + kem.public_key
        if not primitives.verify(identity, kem.signature, primitives.KEM_PREKEY_LABEL, message):
            raise HandshakeError("prekey_forged", f"the KEM prekey is not signed by {peer}")
    return VerifiedBundle(statement=statement, bundle=bundle)
