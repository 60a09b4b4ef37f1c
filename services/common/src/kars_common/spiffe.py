"""SPIFFE ids: the names that kars processes prove with their certificates.

Accepts exactly what the SPIFFE ID standard allows (no normalisation, no percent-encoding) and
knows the three shapes that kars issues: services, sandboxes, operators. Knows nothing of
certificates.
"""

import re
from dataclasses import dataclass
from typing import Self

from kars_common.errors import InvalidInputError

_MAX_ID_BYTES = 2048
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_SANDBOX_NAME = 58
_SCHEME = "spiffe://"


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """One SPIFFE id: a trust domain and the path segments under it."""

    trust_domain: str
    segments: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise _invalid("trust domain must be 1 to 255 of a-z 0-9 . _ -")
        for segment in self.segments:
            if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
                raise _invalid("path segments must be made of a-z A-Z 0-9 . _ - and be no dot segment")
        if len(str(self)) > _MAX_ID_BYTES:
            raise _invalid(f"must have at most {_MAX_ID_BYTES} bytes, got {len(str(self))}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `spiffe://<trust-domain>/<path>`.

        Raises:
            InvalidInputError: `spiffe_id_invalid` when the text is not a SPIFFE id.
        """
        if len(text) > _MAX_ID_BYTES:
            raise _invalid(f"must have at most {_MAX_ID_BYTES} bytes")
        if not text.startswith(_SCHEME):
            raise _invalid("must start with spiffe://")
        trust_domain, slash, path = text[len(_SCHEME) :].partition("/")
        if slash and not path:
            raise _invalid("must not end with a slash")
        return cls(trust_domain, tuple(path.split("/")) if path else ())

    @classmethod
    def service(cls, trust_domain: str, name: str) -> Self:
        """Return the id of a service such as `controller`."""
        return cls(trust_domain, ("svc", _label(name)))

    @classmethod
    def sandbox(cls, trust_domain: str, namespace: str, name: str) -> Self:
        """Return the id of the router of one sandbox."""
        if len(name) > _MAX_SANDBOX_NAME:
            raise _invalid(f"sandbox name must have at most {_MAX_SANDBOX_NAME} characters")
        return cls(trust_domain, ("ns", _label(namespace), "sandbox", _label(name)))

    @classmethod
    def operator(cls, trust_domain: str, user: str) -> Self:
        """Return the id of a person who operates the platform."""
        return cls(trust_domain, ("operator", user))

    @property
    def path(self) -> str:
        """The path with its leading slash; empty for the trust domain itself."""
        return "".join(f"/{segment}" for segment in self.segments)

    @property
    def sandbox_ref(self) -> tuple[str, str] | None:
        """Namespace and name when this is a sandbox, else None."""
        match self.segments:
            case ("ns", namespace, "sandbox", name):
                return namespace, name
        return None

    @property
    def dns_name(self) -> str:
        """The DNS SAN by which clients check this server.

        Raises:
            InvalidInputError: `spiffe_id_invalid` when this identity serves nobody, such as an operator.
        """
        match self.segments:
            case ("svc", name):
                return f"{_label(name)}.svc.{self.trust_domain}"
            case ("ns", namespace, "sandbox", name):
                return f"{_label(name)}.{_label(namespace)}.sandbox.{self.trust_domain}"
        raise _invalid(f"{self} has no DNS name; only services and sandboxes serve")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def _label(text: str) -> str:
    if not _DNS_LABEL.fullmatch(text):
        raise _invalid("names in an identity must be DNS-1123 labels")
    return text


def _invalid(what: str) -> InvalidInputError:
    return InvalidInputError("spiffe_id_invalid", f"not a SPIFFE id of kars: {what}")
