"""The certificate authority of the trust domain, and the one-time tokens that it accepts as proof."""

from kars_controller.ca.authority import CertificateAuthority, IssuedCertificate
from kars_controller.ca.source import AuthoritySvidSource
from kars_controller.ca.tokens import JoinTokens

__all__ = ["AuthoritySvidSource", "CertificateAuthority", "IssuedCertificate", "JoinTokens"]
