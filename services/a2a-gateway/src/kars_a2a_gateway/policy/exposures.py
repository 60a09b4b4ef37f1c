"""The compiled policy: frozen values that requests are judged by.

Made by `policy.compiler` only, so that what is here has been checked. Knows no wire format.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kars_common.agent_cards import CardKey


@dataclass(frozen=True, kw_only=True)
class CertificateRule:
    """A client certificate with one of these URIs, or of these thumbprints."""

    scheme: str
    uris: tuple[str, ...]
    thumbprints: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class TokenRule:
    """A bearer token of one of these issuers."""

    scheme: str
    issuers: frozenset[str]
    scopes: frozenset[str]
    subjects: frozenset[str]
    require_bound: bool


@dataclass(frozen=True, kw_only=True)
class ApiKeyRule:
    """One of these keys."""

    scheme: str
    key_ids: frozenset[str]
    scopes: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """All parts that are not None must be met."""

    certificate: CertificateRule | None
    token: TokenRule | None
    api_key: ApiKeyRule | None


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """An authorization server."""

    issuer: str
    audiences: frozenset[str]
    algorithms: tuple[str, ...]
    jwks_uri: str
    jwks: str
    skew_s: int
    max_lifetime_s: int
    open_id_connect_url: str
    token_url: str


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """The hash of a key."""

    id: str
    sha256: bytes = field(repr=False)
    scopes: frozenset[str]
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one exposure; every one is set."""

    max_body_bytes: int
    caller_rate_per_s: float
    caller_burst: int
    agent_rate_per_s: float
    agent_burst: int
    max_streams: int
    max_open_tasks: int
    max_stream_s: float
    max_push_configs: int


@dataclass(frozen=True, kw_only=True)
class PaymentRule:
    """Which payment mandates are accepted."""

    required: bool
    mandate_keys: tuple[CardKey, ...]


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One agent that callers from outside may reach."""

    namespace: str
    name: str
    endpoint: str
    enabled: bool
    expires_at: datetime | None
    skills: tuple[str, ...]
    callers: tuple[Requirement, ...]
    skill_rules: Mapping[str, tuple[Requirement, ...]]
    anonymous: bool
    allow_streaming: bool
    allow_push: bool
    allow_extended_card: bool
    card_keys: tuple[CardKey, ...]
    require_signed_card: bool
    limits: Limits
    allowed_origins: frozenset[str]
    push_hosts: tuple[str, ...]
    payments: PaymentRule | None = None

    @property
    def agent(self) -> str:
        """`namespace/name`: the tenant of the gRPC binding, and the key of all state."""
        return f"{self.namespace}/{self.name}"

    def open_at(self, now: datetime) -> bool:
        """Tell whether callers may reach the agent at this moment."""
        return self.enabled and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, kw_only=True)
class GatewayTable:
    """Everything in force at one moment; replaced whole."""

    version: int
    exposures: Mapping[str, Exposure]
    issuers: Mapping[str, Issuer]
    api_keys: Mapping[str, ApiKey]
    client_authorities: tuple[bytes, ...]
    root_agent: str

    def find(self, agent: str, now: datetime) -> Exposure | None:
        """Return an open exposure; None for every other agent, whatever the reason."""
        exposure = self.exposures.get(agent)
        return exposure if exposure is not None and exposure.open_at(now) else None


EMPTY = GatewayTable(version=0, exposures={}, issuers={}, api_keys={}, client_authorities=(), root_agent="")
"""No policy in force: nothing exists."""
