"""The authority certifies a key for the identity that was proven, and nothing else a request asks for."""

import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from kars_common.errors import FailedPreconditionError, InvalidInputError, UnauthenticatedError
from kars_common.identity import Svid, create_csr
from kars_common.spiffe import SpiffeId
from kars_controller import testing
from kars_controller.ca import AuthoritySvidSource, CertificateAuthority, JoinTokens
from kars_controller.storage import Database

OWN = SpiffeId.sandbox("kars.local", "default", "agent")
CONTROLLER = SpiffeId.service("kars.local", "controller")
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.open(tmp_path / "ca", "kars.local")


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[tuple[JoinTokens, testing.Clock, Database]]:
    database, clock = Database(tmp_path / "resources.db"), testing.Clock()
    yield JoinTokens(database, clock), clock, database
    database.close()


def request(*extensions: x509.ExtensionType, key: Key | None = None, common_name: str = "kars") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def names(*given: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(given)


def test_a_leaf_carries_exactly_its_identity_and_serves_under_its_own_name(
    authority: CertificateAuthority,
) -> None:
    issued = authority.issue(request(common_name="controller.svc.kars.local"), OWN)
    leaf = x509.load_pem_x509_certificate(issued.chain_pem.encode())
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == [str(OWN)]
    assert san.get_values_for_type(x509.DNSName) == ["agent.default.sandbox.kars.local"]
    assert "controller" not in leaf.subject.rfc4514_string()
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert lifetime <= timedelta(hours=1, minutes=2)


def test_operators_get_no_name_to_serve_under(authority: CertificateAuthority) -> None:
    issued = authority.issue(request(), SpiffeId.operator("kars.local", "ann"))
    leaf = x509.load_pem_x509_certificate(issued.chain_pem.encode())
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == []


@pytest.mark.parametrize(
    "csr",
    [
        lambda: request(names(x509.UniformResourceIdentifier(str(CONTROLLER)))),
        lambda: request(
            names(x509.UniformResourceIdentifier(str(OWN)), x509.DNSName("controller.svc.kars.local"))
        ),
        lambda: request(names(x509.DNSName("*.kars.local"))),
        lambda: request(names(x509.RFC822Name("root@kars.local"))),
        lambda: request(x509.BasicConstraints(ca=True, path_length=None)),
        lambda: request(key=rsa.generate_private_key(65537, 2048)),
        lambda: request(key=ed25519.Ed25519PrivateKey.generate()),
        lambda: request(key=ec.generate_private_key(ec.SECP521R1())),
        lambda: request()[:200],
        lambda: "",
        lambda: request() + "x" * 20_000,
        lambda: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ],
)
def test_requests_that_ask_for_more_are_refused(
    authority: CertificateAuthority, csr: Callable[[], str]
) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        authority.issue(csr(), OWN)
    assert refusal.value.reason == "csr_invalid"


def test_a_request_not_signed_by_its_own_key_is_refused(authority: CertificateAuthority) -> None:
    der = bytearray(x509.load_pem_x509_csr(request().encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(InvalidInputError):
        authority.issue(forged, OWN)


def test_naming_itself_is_allowed(authority: CertificateAuthority) -> None:
    csr = request(names(x509.UniformResourceIdentifier(str(OWN)), x509.DNSName(OWN.dns_name)))
    assert authority.issue(csr, OWN).spiffe_id == OWN


def test_an_identity_of_another_trust_domain_is_never_issued(authority: CertificateAuthority) -> None:
    with pytest.raises(InvalidInputError):
        authority.issue(request(), SpiffeId.sandbox("evil.local", "default", "agent"))


def test_the_root_survives_and_is_private(tmp_path: Path, authority: CertificateAuthority) -> None:
    again = CertificateAuthority.open(tmp_path / "ca", "kars.local")
    assert again.trust_bundle_pem == authority.trust_bundle_pem
    assert stat.S_IMODE((tmp_path / "ca" / "root.key").stat().st_mode) == 0o600
    with pytest.raises(FailedPreconditionError) as refusal:
        CertificateAuthority.open(tmp_path / "ca", "other.local")
    assert refusal.value.reason == "ca_wrong_trust_domain"


def test_half_a_root_is_an_error_and_not_a_new_root(tmp_path: Path, authority: CertificateAuthority) -> None:
    (tmp_path / "ca" / "root.key").unlink()
    with pytest.raises(FailedPreconditionError) as refusal:
        CertificateAuthority.open(tmp_path / "ca", "kars.local")
    assert refusal.value.reason == "ca_damaged"
    assert authority.trust_bundle_pem.encode() == (tmp_path / "ca" / "root.pem").read_bytes()


def test_the_certificates_fit_what_holders_verify(authority: CertificateAuthority) -> None:
    key, csr = create_csr()
    issued = authority.issue(csr.decode(), OWN)
    svid = Svid.from_pem(
        chain=issued.chain_pem.encode(), private_key=key, trust_bundle=authority.trust_bundle_pem.encode()
    )
    assert svid.spiffe_id == OWN


def test_a_token_works_once(tokens: tuple[JoinTokens, testing.Clock, Database]) -> None:
    issuer, _, _ = tokens
    token = issuer.issue(OWN, timedelta(minutes=1))
    assert issuer.identity_of(token) == OWN
    issuer.spend(token)
    for attempt in (issuer.spend, issuer.identity_of):
        with pytest.raises(UnauthenticatedError) as refusal:
            attempt(token)
        assert refusal.value.reason == "attestation_failed"


def test_a_token_expires_and_is_replaced_and_revoked(
    tokens: tuple[JoinTokens, testing.Clock, Database],
) -> None:
    issuer, clock, _ = tokens
    token = issuer.issue(OWN, timedelta(minutes=1))
    clock.advance(61)
    with pytest.raises(UnauthenticatedError):
        issuer.spend(token)
    older, newer = issuer.issue(OWN, timedelta(minutes=1)), issuer.issue(OWN, timedelta(minutes=1))
    with pytest.raises(UnauthenticatedError):
        issuer.identity_of(older)
    assert issuer.identity_of(newer) == OWN
    issuer.revoke(OWN)
    with pytest.raises(UnauthenticatedError):
        issuer.identity_of(newer)


def test_the_database_gives_nobody_a_token(
    tmp_path: Path, tokens: tuple[JoinTokens, testing.Clock, Database]
) -> None:
    issuer, _, _ = tokens
    token = issuer.issue(OWN, timedelta(minutes=1))
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("resources.db*"))
    assert token.encode() not in stored


@pytest.mark.parametrize("token", ["", "x", "\ud800", "a" * 10_000])
def test_strange_tokens_are_refused_like_any_other(
    tokens: tuple[JoinTokens, testing.Clock, Database], token: str
) -> None:
    with pytest.raises(UnauthenticatedError):
        tokens[0].identity_of(token)


async def test_own_identity_is_renewed_at_half_life(authority: CertificateAuthority) -> None:
    seen: list[Svid] = []
    source = AuthoritySvidSource(authority, CONTROLLER, timedelta(hours=1), seen.append)
    assert source.current().spiffe_id == CONTROLLER
    assert len(seen) == 1
