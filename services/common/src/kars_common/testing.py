"""What tests of any service need: an authority in memory, and a source that is told when to rotate.

Never imported by a service. Certificates have the shape that the controller issues.
"""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kars_common.errors import InvalidInputError
from kars_common.identity._changes import Holder
from kars_common.identity.csr import create_csr
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid


class MemoryAuthority:
    """A certificate authority of one trust domain, for the length of a test."""

    def __init__(self, trust_domain: str = "kars.local") -> None:
        self.trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} test root")])
        now = datetime.now(UTC)
        self._root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def trust_bundle_pem(self) -> bytes:
        """The root, PEM."""
        return self._root.public_bytes(serialization.Encoding.PEM)

    def service(self, name: str, lifetime: timedelta = timedelta(hours=1)) -> Svid:
        """Issue an SVID to a service."""
        return self.issue(SpiffeId.service(self.trust_domain, name), lifetime=lifetime)

    def sandbox(self, namespace: str, name: str, lifetime: timedelta = timedelta(hours=1)) -> Svid:
        """Issue an SVID to a sandbox's router."""
        return self.issue(SpiffeId.sandbox(self.trust_domain, namespace, name), lifetime=lifetime)

    def operator(self, user: str, lifetime: timedelta = timedelta(hours=1)) -> Svid:
        """Issue an SVID to an operator."""
        return self.issue(SpiffeId.operator(self.trust_domain, user), lifetime=lifetime)

    def issue(
        self,
        spiffe_id: SpiffeId,
        *,
        lifetime: timedelta = timedelta(hours=1),
        issued_at: datetime | None = None,
        dns_names: tuple[str, ...] | None = None,
    ) -> Svid:
        """Issue an SVID with a key of its own; `dns_names` None gives a server its own."""
        private_key_pem, csr_pem = create_csr()
        chain = self.sign(csr_pem, spiffe_id, lifetime=lifetime, issued_at=issued_at, dns_names=dns_names)
        return Svid.from_pem(chain=chain, private_key=private_key_pem, trust_bundle=self.trust_bundle_pem)

    def sign(
        self,
        csr_pem: bytes,
        spiffe_id: SpiffeId,
        *,
        lifetime: timedelta = timedelta(hours=1),
        issued_at: datetime | None = None,
        dns_names: tuple[str, ...] | None = None,
    ) -> bytes:
        """Return the certificate for a CSR, PEM."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        names += [x509.DNSName(name) for name in (_own_names(spiffe_id) if dns_names is None else dns_names)]
        return self._certify(csr_pem, names, issued_at or datetime.now(UTC) - timedelta(seconds=1), lifetime)

    def with_uris(self, uris: list[str]) -> tuple[bytes, bytes]:
        """Return key and certificate with any URI SANs: what an authority must never issue."""
        private_key_pem, csr_pem = create_csr()
        names: list[x509.GeneralName] = [x509.DNSName("odd.example")]
        names += [x509.UniformResourceIdentifier(uri) for uri in uris]
        issued_at = datetime.now(UTC) - timedelta(seconds=1)
        return private_key_pem, self._certify(csr_pem, names, issued_at, timedelta(hours=1))

    def _certify(
        self, csr_pem: bytes, names: list[x509.GeneralName], issued_at: datetime, lifetime: timedelta
    ) -> bytes:
        csr = x509.load_pem_x509_csr(csr_pem)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(self._root.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(issued_at)
            .not_valid_after(issued_at + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
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
        return certificate.public_bytes(serialization.Encoding.PEM)


class StaticSvidSource:
    """A source whose SVID a test replaces with `rotate`."""

    def __init__(self, svid: Svid | None = None) -> None:
        self._holder = Holder()
        if svid is not None:
            self._holder.put(svid)

    def rotate(self, svid: Svid) -> None:
        """Make another SVID the current one."""
        self._holder.put(svid)

    def current(self) -> Svid:
        """Return the SVID; raises UnavailableError without one."""
        return self._holder.current()

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """Wait for `rotate`."""
        return await self._holder.wait_changed(previous)

    async def run(self) -> None:
        """Nothing to renew."""


def _own_names(spiffe_id: SpiffeId) -> tuple[str, ...]:
    try:
        return (spiffe_id.dns_name,)
    except InvalidInputError:
        return ()


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
