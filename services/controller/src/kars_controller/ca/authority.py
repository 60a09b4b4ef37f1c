"""The built-in certificate authority: one EC P-256 root, leaves that live an hour.

The root's key is a 0600 file that only the controller reads. A leaf carries one SPIFFE id as URI SAN and,
when its holder serves, the one DNS name that clients check. Who may have which identity is not decided
here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kars_common import files
from kars_common.errors import FailedPreconditionError, InvalidInputError
from kars_common.spiffe import SpiffeId

from kars_controller.ca import csr

SVID_LIFETIME = timedelta(hours=1)
_ROOT_LIFETIME = timedelta(days=3650)
_BACKDATED = timedelta(seconds=60)
"""For clocks that are a little behind; on one machine it costs nothing."""


@dataclass(frozen=True, kw_only=True)
class IssuedCertificate:
    """A leaf that was just issued."""

    spiffe_id: SpiffeId
    chain_pem: str
    expires_at: datetime
    serial: str


class CertificateAuthority:
    """Issues X.509-SVIDs of one trust domain."""

    def __init__(
        self,
        trust_domain: str,
        root: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        now: Callable[[], datetime],
    ) -> None:
        self.trust_domain = trust_domain
        self._root = root
        self._key = key
        self._now = now

    @classmethod
    def open(
        cls, directory: Path, trust_domain: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> "CertificateAuthority":
        """Load the root from `directory`, or make it on first use.

        Raises:
            FailedPreconditionError: `ca_damaged`: one file is missing or they do not belong together,
                `ca_wrong_trust_domain`: the root was made for another one.
        """
        key_path, root_path = directory / "root.key", directory / "root.pem"
        if not key_path.exists() and not root_path.exists():
            _create(directory, trust_domain, now())
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
            root = x509.load_pem_x509_certificate(root_path.read_bytes())
        except (OSError, ValueError, TypeError) as exc:
            raise FailedPreconditionError("ca_damaged", f"cannot read the root in {directory.name}/") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != root.public_key():
            raise FailedPreconditionError(
                "ca_damaged", f"root.key and root.pem in {directory.name}/ do not fit"
            )
        if root.subject != _root_name(trust_domain):
            raise FailedPreconditionError(
                "ca_wrong_trust_domain",
                f"the root in {directory.name}/ is not of trust domain {trust_domain}",
            )
        return cls(trust_domain, root, key, now)

    @property
    def trust_bundle_pem(self) -> str:
        """The root, PEM."""
        return self._root.public_bytes(serialization.Encoding.PEM).decode()

    def issue(
        self, csr_pem: str, identity: SpiffeId, lifetime: timedelta = SVID_LIFETIME
    ) -> IssuedCertificate:
        """Certify the key of a request for `identity`, whatever else the request says.

        Raises:
            InvalidInputError: `csr_invalid`; `spiffe_id_invalid` for an identity of another trust domain.
        """
        if identity.trust_domain != self.trust_domain:
            raise InvalidInputError(
                "spiffe_id_invalid", f"{identity} is not of trust domain {self.trust_domain}"
            )
        dns_names = dns_names_of(identity)
        public_key = csr.public_key_of(csr_pem, identity, dns_names)
        now = self._now()
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
        names += [x509.DNSName(name) for name in dns_names]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "kars")]))
            .issuer_name(self._root.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(min(now + lifetime, self._root.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return IssuedCertificate(
            spiffe_id=identity,
            chain_pem=leaf.public_bytes(serialization.Encoding.PEM).decode(),
            expires_at=leaf.not_valid_after_utc,
            serial=f"{leaf.serial_number:x}",
        )


def dns_names_of(identity: SpiffeId) -> tuple[str, ...]:
    """Return the DNS names that a holder of this identity may serve under; none for operators."""
    try:
        return (identity.dns_name,)
    except InvalidInputError:
        return ()


def _create(directory: Path, trust_domain: str, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _root_name(trust_domain)
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files.replace(directory / "root.key", key_pem)
    files.replace(directory / "root.pem", root.public_bytes(serialization.Encoding.PEM))


def _root_name(trust_domain: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} root")])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
