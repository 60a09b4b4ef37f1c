"""Two organisations outside, and their papers: a certificate authority, a token issuer, API keys."""

import hashlib
import ipaddress
import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey
from kars.a2a.v1 import policy_pb2

from kars_a2a_gateway_testkit.policies import in_hours

AUDIENCE = "https://gateway.example"


class CertificateAuthority:
    """A CA that issues what a test asks for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, directory.name)])
        self._root = self._sign(self._name, self._key.public_key(), [], ca=True)
        self.root_file = directory / "root.pem"
        self.root_file.write_bytes(self.root_pem)

    @property
    def root_pem(self) -> bytes:
        """The root, PEM."""
        return self._root.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, *, uri: str = "", address: str = "") -> tuple[Path, Path, str]:
        """Issue a certificate; returns its file, its key's file, and the SHA-256 of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(f"{name}.example")]
        if uri:
            names.append(x509.UniformResourceIdentifier(uri))
        if address:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), names, ca=False)
        cert_file, key_file = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file, certificate.fingerprint(hashes.SHA256()).hex()

    def _sign(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        *,
        ca: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class TokenIssuer:
    """An authorization server's signing half."""

    def __init__(self, issuer: str = "https://issuer.example") -> None:
        self.issuer = issuer
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def key_set(self, kid: str = "k1") -> str:
        """Return the public keys."""
        public = dict(ECKey.import_key(self.pem).as_dict(private=False))
        return orjson.dumps({"keys": [{**public, "kid": kid, "alg": "ES256", "use": "sig"}]}).decode()

    def policy(self, **fields: Any) -> policy_pb2.TokenIssuer:  # noqa: ANN401  # proto fields
        """Return this issuer as policy names it."""
        fields.setdefault("jwks", self.key_set())
        return policy_pb2.TokenIssuer(
            issuer=self.issuer, audiences=[AUDIENCE], algorithms=["ES256"], **fields
        )

    def token(self, *, headers: dict[str, Any] | None = None, key: Any = None, **claims: Any) -> str:  # noqa: ANN401
        """Issue a token; claims and headers may be anything."""
        now = int(time.time())
        payload = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "alice",
            "scope": "agent.call",
            "iat": now,
            "exp": now + 600,
            **claims,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(
            payload, key or self.key, algorithm="ES256", headers={"kid": "k1", **(headers or {})}
        )


def api_key(key_id: str, *, scopes: tuple[str, ...] = (), hours: float = 1) -> tuple[str, policy_pb2.ApiKey]:
    """Return a fresh API key, and what policy knows of it."""
    key = f"kars_{key_id}_{secrets.token_urlsafe(32)}"
    hashed = hashlib.sha256(key.encode()).hexdigest()
    known = policy_pb2.ApiKey(id=key_id, sha256=hashed, scopes=scopes)
    known.expires_at.FromDatetime(in_hours(hours))
    return key, known


def token_rule(issuer: TokenIssuer, *scopes: str, **fields: Any) -> policy_pb2.CallerRequirement:  # noqa: ANN401
    """Return a requirement of a token."""
    return policy_pb2.CallerRequirement(
        token=policy_pb2.TokenRule(issuers=[issuer.issuer], scopes=scopes, **fields)
    )
