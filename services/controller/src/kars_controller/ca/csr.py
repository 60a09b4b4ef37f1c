"""Judges certificate requests. Only the public key is ever taken over from one.

A request that asks for anything besides its own identity is refused, not trimmed: who asks for more
is broken or hostile.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId

_MAX_CSR_BYTES = 16 * 1024
_CURVES = (ec.SECP256R1, ec.SECP384R1)


def public_key_of(csr_pem: str, identity: SpiffeId, dns_names: tuple[str, ...]) -> ec.EllipticCurvePublicKey:
    """Return the key of a request that may be certified for `identity`.

    Raises:
        InvalidInputError: `csr_invalid`: malformed, unsigned, another key type than EC P-256 or P-384, or
            asking for a name or extension that is not the identity's own.
    """
    if len(csr_pem) > _MAX_CSR_BYTES:
        raise _invalid(f"has more than {_MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        signed = csr.is_signature_valid
        key = csr.public_key()
        extensions = list(csr.extensions)
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, TypeError) as exc:
        raise _invalid("is not a PEM certificate request") from exc
    if not signed:
        raise _invalid("is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise _invalid("key must be EC P-256 or P-384")
    for extension in extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            raise _invalid(
                f"asks for extension {extension.oid.dotted_string}; none but its own name is given"
            )
        for name in extension.value:
            _check_name(name, identity, dns_names)
    return key


def _check_name(name: x509.GeneralName, identity: SpiffeId, dns_names: tuple[str, ...]) -> None:
    own = (isinstance(name, x509.UniformResourceIdentifier) and name.value == str(identity)) or (
        isinstance(name, x509.DNSName) and name.value in dns_names
    )
    if not own:
        raise _invalid("asks for a name that is not its own")


def _invalid(what: str) -> InvalidInputError:
    return InvalidInputError("csr_invalid", f"certificate request {what}")
