"""The verified caller, and what a door may hand in to prove one."""

from dataclasses import dataclass, field
from enum import StrEnum


class PrincipalKind(StrEnum):
    """How a caller proved who it is."""

    ANONYMOUS = "anonymous"
    CERTIFICATE = "certificate"
    TOKEN = "oauth"  # noqa: S105  # a kind, no secret
    API_KEY = "key"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """A caller; `id` owns tasks, contexts, pushes and pages."""

    kind: PrincipalKind
    id: str
    scopes: frozenset[str] = frozenset()
    skills: frozenset[str] | None = None
    """Skills it may use; None for all that are shown."""

    @property
    def proven(self) -> bool:
        """Whether there is a credential behind it."""
        return self.kind is not PrincipalKind.ANONYMOUS


ANONYMOUS = Principal(kind=PrincipalKind.ANONYMOUS, id="anonymous")
"""All callers without a credential. They share what they make: nothing tells them apart."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What came with a request; nothing in it was verified but the chain of the certificate, by TLS."""

    certificate_der: bytes | None = None
    authorization: tuple[str, ...] = field(default=(), repr=False)
    api_key: tuple[str, ...] = field(default=(), repr=False)
