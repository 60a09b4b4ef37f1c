"""X.509-SVIDs as their holder sees them, and the one seam they come through.

An `Svid` is always usable: it is built from PEM that was parsed, with the key that fits the leaf
and roots to verify peers with. Knows no file, socket or issuer.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId


@dataclass(frozen=True, kw_only=True)
class Svid:
    """One X.509-SVID with its key and the roots of its trust domain."""

    spiffe_id: SpiffeId
    certificate_chain_pem: bytes
    private_key_pem: bytes = field(repr=False)
    trust_bundle_pem: bytes
    expires_at: datetime
    issued_at: datetime

    @classmethod
    def from_pem(cls, *, chain: bytes, private_key: bytes, trust_bundle: bytes) -> Self:
        """Build from PEM after checking that the parts belong together.

        Checks one URI SAN that is a SPIFFE id, the key of the leaf, and that the chain leads to
        one of the roots. Expiry is not judged here: see `valid_at`.

        Raises:
            InvalidInputError: `svid_invalid` naming the part that is wrong.
        """
        certificates = _certificates(chain, "certificate chain")
        leaf = certificates[0]
        roots = _certificates(trust_bundle, "trust bundle")
        _check_key(leaf, private_key)
        _check_chain(leaf, certificates[1:], roots)
        return cls(
            spiffe_id=spiffe_id_of(leaf),
            certificate_chain_pem=chain,
            private_key_pem=private_key,
            trust_bundle_pem=trust_bundle,
            expires_at=leaf.not_valid_after_utc,
            issued_at=leaf.not_valid_before_utc,
        )

    def valid_at(self, moment: datetime) -> bool:
        """Tell whether the leaf may be used at this moment."""
        return self.issued_at <= moment < self.expires_at

    def issued_under(self, trust_bundle_pem: bytes) -> bool:
        """Tell whether one of these roots issued the chain."""
        certificates = _certificates(self.certificate_chain_pem, "certificate chain")
        roots = _certificates(trust_bundle_pem, "trust bundle")
        return any(_issued(certificates[-1], root) for root in roots)

    def half_life_at(self) -> datetime:
        """The moment from which the holder should renew."""
        return self.issued_at + (self.expires_at - self.issued_at) / 2


class SvidSource(Protocol):
    """Where a process gets its own SVID from, fresh ones included."""

    def current(self) -> Svid:
        """Return the SVID to use now; safe to call from any thread.

        Raises:
            UnavailableError: `svid_unavailable` when none was obtained yet or the last one expired.
        """
        ...

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """Wait until there is a valid SVID other than `previous`, then return it."""
        ...

    async def run(self) -> None:
        """Obtain and renew for ever; a task of the service's TaskGroup."""
        ...


def spiffe_id_of(leaf: x509.Certificate) -> SpiffeId:
    """Return the one SPIFFE id that a certificate names.

    Raises:
        InvalidInputError: `svid_invalid` when there is not exactly one URI SAN; `spiffe_id_invalid`.
    """
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as exc:
        raise InvalidInputError("svid_invalid", "certificate has no subject alternative name") from exc
    uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidInputError("svid_invalid", f"certificate must have exactly one URI SAN, got {len(uris)}")
    return SpiffeId.parse(uris[0])


def _certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise InvalidInputError("svid_invalid", f"{what} is not PEM certificates") from exc


def _check_key(leaf: x509.Certificate, private_key_pem: bytes) -> None:
    try:
        key = serialization.load_pem_private_key(private_key_pem, password=None)
    except (ValueError, TypeError) as exc:
        raise InvalidInputError("svid_invalid", "private key is not an unencrypted PEM key") from exc
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise InvalidInputError("svid_invalid", "private key does not belong to the certificate")


def _check_chain(
    leaf: x509.Certificate, intermediates: list[x509.Certificate], roots: list[x509.Certificate]
) -> None:
    # Who issued it, whatever the time: TLS judges validity and usage at every handshake.
    last = leaf
    for issuer in intermediates:
        if not _issued(last, issuer):
            raise InvalidInputError("svid_invalid", "certificate chain is not in order, leaf first")
        last = issuer
    if not any(_issued(last, root) for root in roots):
        raise InvalidInputError("svid_invalid", "certificate chain does not lead to the trust bundle")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
