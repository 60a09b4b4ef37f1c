"""What a client certificate says, after TLS verified its chain."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from kars_a2a_gateway.policy.exposures import CertificateRule


@dataclass(frozen=True, kw_only=True)
class CertificateFacts:
    """The parts that rules look at."""

    uris: tuple[str, ...]
    thumbprint: str
    """SHA-256 of the certificate, hex."""
    not_after_s: float

    @property
    def subject(self) -> str:
        """The name of the caller: its one URI, else the thumbprint."""
        return self.uris[0] if len(self.uris) == 1 else f"sha256:{self.thumbprint}"


@lru_cache(maxsize=2048)
def read(der: bytes) -> CertificateFacts | None:
    """Return the facts, or None for a certificate that cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        uris: list[str] = []
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            pass  # a certificate without names can still be pinned by thumbprint
        return CertificateFacts(
            uris=tuple(uris),
            thumbprint=hashlib.sha256(der).hexdigest(),
            not_after_s=certificate.not_valid_after_utc.timestamp(),
        )
    except ValueError:
        return None


def satisfies(facts: CertificateFacts, rule: CertificateRule) -> bool:
    """Tell whether a certificate is one that the rule names."""
    if facts.thumbprint in rule.thumbprints:
        return True
    # More than one URI is more than one identity: none of them is taken.
    return len(facts.uris) == 1 and any(_uri_matches(pattern, facts.uris[0]) for pattern in rule.uris)


def _uri_matches(pattern: str, uri: str) -> bool:
    if pattern.endswith("/*"):
        head, _, last = uri.rpartition("/")
        return head == pattern[:-2] and bool(last)
    return uri == pattern
