"""From a verified GatewayPolicy to the table that requests are judged by, or a refusal of all of it.

A rule that cannot be enforced as written (an unknown issuer, a symmetric algorithm, a key without an end)
refuses the whole bundle: the one in force stays, and the controller is told why. Nothing is skipped.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cryptography import x509
from google.protobuf.timestamp_pb2 import Timestamp
from kars.a2a.v1 import policy_pb2
from kars.policy.v1 import policy_pb2 as bundle_pb2
from kars_common.agent_cards import CardKey
from kars_common.errors import InvalidInputError

from kars_a2a_gateway.policy import exposures
from kars_a2a_gateway.settings import MAX_BODY_BYTES, GatewaySettings

ALGORITHMS = frozenset(
    ("ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA", "Ed25519")
)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,56}[a-z0-9])?")
_ENDPOINT = re.compile(r"[A-Za-z0-9.\-\[\]:]+:[0-9]{1,5}|unix:/.+")
_KEY_ID = re.compile(r"[a-z0-9]{8,32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?")
_SCHEME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_AGENTS = 1024
_MAX_ISSUERS = 64
_MAX_KEYS = 4096
_MAX_SKEW_S = 300
_DEFAULT_SKEW_S = 30


def compile_bundle(bundle: bundle_pb2.PolicyBundle, settings: GatewaySettings) -> exposures.GatewayTable:
    """Compile the gateway's part of a bundle.

    Raises:
        InvalidInputError: `gateway_policy_invalid`, naming the rule.
    """
    if not bundle.HasField("a2a_gateway"):
        raise _refused("the bundle has no a2aGateway part")
    policy = bundle.a2a_gateway
    if (
        len(policy.agents) > _MAX_AGENTS
        or len(policy.issuers) > _MAX_ISSUERS
        or len(policy.api_keys) > _MAX_KEYS
    ):
        raise _refused("too many agents, issuers or keys")
    issuers = {issuer.issuer: issuer for issuer in map(_issuer, policy.issuers)}
    api_keys = {key.id: key for key in map(_api_key, policy.api_keys)}
    known = _Known(issuers=frozenset(issuers), api_keys=frozenset(api_keys))
    agents = [_exposure(agent, known, settings) for agent in policy.agents]
    table = {exposure.agent: exposure for exposure in agents}
    if (
        len(table) != len(agents)
        or len(issuers) != len(policy.issuers)
        or len(api_keys) != len(policy.api_keys)
    ):
        raise _refused("an agent, issuer or key is there twice")
    root = f"{policy.root_agent.namespace}/{policy.root_agent.name}" if policy.HasField("root_agent") else ""
    if root and root not in table:
        raise _refused(f"rootAgent {root} is not exposed")
    return exposures.GatewayTable(
        version=bundle.version,
        exposures=table,
        issuers=issuers,
        api_keys=api_keys,
        client_authorities=tuple(_authority(item) for item in policy.client_authorities),
        root_agent=root,
    )


class _Known:
    """Names that rules may refer to."""

    def __init__(self, *, issuers: frozenset[str], api_keys: frozenset[str]) -> None:
        self.issuers = issuers
        self.api_keys = api_keys


def _exposure(
    agent: policy_pb2.AgentExposure, known: _Known, settings: GatewaySettings
) -> exposures.Exposure:
    namespace, name = agent.agent.namespace, agent.agent.name
    where = f"agent {namespace}/{name}"
    if not _NAMESPACE.fullmatch(namespace) or not _NAME.fullmatch(name):
        raise _refused(f"{where[:150]}: names must be DNS-1123 labels")
    if not _ENDPOINT.fullmatch(agent.endpoint):
        raise _refused(f"{where}: endpoint must be host:port")
    if agent.require_signed_card and not agent.card_keys:
        raise _refused(f"{where}: requireSignedCard needs cardKeys")
    for origin in agent.allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            raise _refused(f"{where}: origin {origin[:100]!r} must be scheme://host[:port]")
    skills = {rule.skill: _requirements(rule.callers, known, where) for rule in agent.skill_rules}
    if len(skills) != len(agent.skill_rules) or not all(skills) or not all(skills.values()):
        raise _refused(f"{where}: a skill rule names one skill once and has callers")
    return exposures.Exposure(
        namespace=namespace,
        name=name,
        endpoint=agent.endpoint,
        enabled=agent.enabled,
        expires_at=_moment(agent.expires_at) if agent.HasField("expires_at") else None,
        skills=tuple(agent.skills),
        callers=_requirements(agent.callers, known, where),
        skill_rules=skills,
        anonymous=agent.anonymous,
        allow_streaming=agent.allow_streaming,
        allow_push=agent.allow_push,
        allow_extended_card=agent.allow_extended_card,
        card_keys=tuple(_card_key(key, where) for key in agent.card_keys),
        require_signed_card=agent.require_signed_card,
        limits=_limits(agent.limits, settings, where),
        allowed_origins=frozenset(agent.allowed_origins),
        push_hosts=tuple(host.lower() for host in agent.push_hosts),
        payments=_payments(agent.payments, where) if agent.HasField("payments") else None,
    )


def _requirements(
    rules: Iterable[policy_pb2.CallerRequirement], known: _Known, where: str
) -> tuple[exposures.Requirement, ...]:
    return tuple(_requirement(rule, known, where) for rule in rules)


def _requirement(rule: policy_pb2.CallerRequirement, known: _Known, where: str) -> exposures.Requirement:
    certificate = token = api_key = None
    if rule.HasField("certificate"):
        part = rule.certificate
        if not (part.uris or part.thumbprints):
            raise _refused(f"{where}: a certificate rule names uris or thumbprints")
        if not all(map(_HEX64.fullmatch, part.thumbprints)):
            raise _refused(f"{where}: a thumbprint is 64 lower-case hex digits")
        certificate = exposures.CertificateRule(
            scheme=_scheme(part.scheme, "mtls", where),
            uris=tuple(part.uris),
            thumbprints=frozenset(part.thumbprints),
        )
    if rule.HasField("token"):
        issuers = frozenset(rule.token.issuers)
        if not issuers or not issuers <= known.issuers:
            raise _refused(f"{where}: a token rule names issuers of this policy")
        token = exposures.TokenRule(
            scheme=_scheme(rule.token.scheme, "oauth2", where),
            issuers=issuers,
            scopes=frozenset(rule.token.scopes),
            subjects=frozenset(rule.token.subjects),
            require_bound=rule.token.require_bound,
        )
    if rule.HasField("api_key"):
        key_ids = frozenset(rule.api_key.key_ids)
        if not key_ids or not key_ids <= known.api_keys:
            raise _refused(f"{where}: an API key rule names keys of this policy")
        api_key = exposures.ApiKeyRule(
            scheme=_scheme(rule.api_key.scheme, "api_key", where),
            key_ids=key_ids,
            scopes=frozenset(rule.api_key.scopes),
        )
    if certificate is None and token is None and api_key is None:
        raise _refused(f"{where}: an empty requirement would let everybody in; say `anonymous` for that")
    return exposures.Requirement(certificate=certificate, token=token, api_key=api_key)


def _issuer(issuer: policy_pb2.TokenIssuer) -> exposures.Issuer:
    where = f"issuer {issuer.issuer[:200]!r}"
    algorithms = tuple(issuer.algorithms)
    if not algorithms or not ALGORITHMS.issuperset(algorithms):
        raise _refused(f"{where}: algorithms must be asymmetric, of {sorted(ALGORITHMS)}")
    if not issuer.issuer or not issuer.audiences:
        raise _refused(f"{where}: issuer and audiences must be set")
    if bool(issuer.jwks_uri) == bool(issuer.jwks):
        raise _refused(f"{where}: exactly one of jwksUri and jwks must be set")
    if issuer.jwks_uri and urlsplit(issuer.jwks_uri).scheme not in ("https", "http"):
        raise _refused(f"{where}: jwksUri must be an https URL")
    if not 0 <= issuer.clock_skew_s <= _MAX_SKEW_S or issuer.max_lifetime_s < 0:
        raise _refused(f"{where}: clockSkewS must be 0 to {_MAX_SKEW_S}")
    return exposures.Issuer(
        issuer=issuer.issuer,
        audiences=frozenset(issuer.audiences),
        algorithms=algorithms,
        jwks_uri=issuer.jwks_uri,
        jwks=issuer.jwks,
        skew_s=issuer.clock_skew_s or _DEFAULT_SKEW_S,
        max_lifetime_s=issuer.max_lifetime_s,
        open_id_connect_url=issuer.open_id_connect_url,
        token_url=issuer.token_url,
    )


def _api_key(key: policy_pb2.ApiKey) -> exposures.ApiKey:
    if not _KEY_ID.fullmatch(key.id) or not _HEX64.fullmatch(key.sha256):
        raise _refused(f"API key {key.id[:32]!r}: id must be [a-z0-9]{{8,32}}, sha256 64 hex digits")
    if not key.HasField("expires_at"):
        raise _refused(f"API key {key.id}: expiresAt must be set")
    return exposures.ApiKey(
        id=key.id,
        sha256=bytes.fromhex(key.sha256),
        scopes=frozenset(key.scopes),
        expires_at=_moment(key.expires_at),
    )


def _payments(rule: policy_pb2.PaymentRule, where: str) -> exposures.PaymentRule:
    if not rule.mandate_keys:
        raise _refused(f"{where}: payments need mandateKeys")
    keys = tuple(_card_key(key, where) for key in rule.mandate_keys)
    return exposures.PaymentRule(required=rule.required, mandate_keys=keys)


def _card_key(key: policy_pb2.CardKey, where: str) -> CardKey:
    not_after = _moment(key.not_after) if key.HasField("not_after") else None
    try:
        parsed = CardKey.from_jwk(key.jwk, kid=key.kid, not_after=not_after)
    except InvalidInputError as exc:
        raise _refused(f"{where}: card key {key.kid[:100]!r}: {exc.message}") from exc
    if parsed.algorithm != key.algorithm:
        raise _refused(f"{where}: card key {key.kid[:100]!r} is for {parsed.algorithm}")
    return parsed


def _authority(authority: policy_pb2.ClientAuthority) -> bytes:
    pem = authority.certificate_pem.encode()
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise _refused("a client authority is not a PEM certificate") from exc
    return pem


def _limits(limits: policy_pb2.ExposureLimits, settings: GatewaySettings, where: str) -> exposures.Limits:
    if any(value < 0 for _, value in limits.ListFields()):
        raise _refused(f"{where}: limits must not be negative")
    if limits.max_body_bytes > MAX_BODY_BYTES:
        raise _refused(f"{where}: maxBodyBytes must be at most {MAX_BODY_BYTES}")
    caller = limits.caller_requests_per_minute or settings.caller_requests_per_minute
    agent = limits.agent_requests_per_minute or settings.agent_requests_per_minute
    return exposures.Limits(
        max_body_bytes=limits.max_body_bytes or settings.max_body_bytes,
        caller_rate_per_s=caller / 60,
        caller_burst=limits.caller_burst or min(settings.caller_burst, caller),
        agent_rate_per_s=agent / 60,
        agent_burst=agent,
        max_streams=limits.max_streams or settings.max_streams_per_caller,
        max_open_tasks=limits.max_open_tasks or settings.max_open_tasks,
        max_stream_s=limits.max_stream_s or settings.max_stream_s,
        max_push_configs=limits.max_push_configs or settings.max_push_configs,
    )


def _scheme(name: str, default: str, where: str) -> str:
    if name and not _SCHEME.fullmatch(name):
        raise _refused(f"{where}: scheme {name[:64]!r} must be of letters, digits, `.`, `_`, `-`")
    return name or default


def _moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


def _refused(message: str) -> InvalidInputError:
    return InvalidInputError("gateway_policy_invalid", message)
