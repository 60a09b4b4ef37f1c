"""An agent's card as outsiders may see it: our addresses, our rules, the skills that policy shows.

A pure function of card, exposure and policy. What an agent says about its addresses, security and signatures
is dropped; what it says about itself (name, skills, modes) is kept.
"""

import hashlib
from collections.abc import Iterable

from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentInterface,
    APIKeySecurityScheme,
    ClientCredentialsOAuthFlow,
    HTTPAuthSecurityScheme,
    MutualTlsSecurityScheme,
    OAuth2SecurityScheme,
    OAuthFlows,
    OpenIdConnectSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
)
from kars_common.agent_cards import CardVerdict, canonical

from kars_a2a_gateway.policy.exposures import Exposure, GatewayTable, Requirement, TokenRule

API_KEY_HEADER = "X-API-Key"
PROVENANCE = "https://kars.azure.com/a2a/extensions/provenance/v1"
_VERSION = "1.0"
_ROLE = "caller"
"""Stands where a scheme without scopes needs one: the official clients' form of a card
drops empty lists, and with them the requirement, from what is signed."""


def rewrite(
    card: AgentCard,
    exposure: Exposure,
    table: GatewayTable,
    *,
    base_url: str,
    grpc_target: str | None,
    verdict: CardVerdict | None,
    skills: frozenset[str] | None = None,
) -> AgentCard:
    """Return the public card, unsigned.

    Args:
        card: the agent's own.
        exposure: what policy opens.
        table: names issuers.
        base_url: where the HTTP bindings of this agent are.
        grpc_target: where the gRPC binding is; None for nowhere.
        verdict: the agent's signature, if one was verified.
        skills: restricted skills that the caller may use; None for a card that anybody may see.
    """
    public = AgentCard()
    public.CopyFrom(card)
    del public.signatures[:]
    del public.supported_interfaces[:]
    public.supported_interfaces.extend(_interfaces(exposure, base_url, grpc_target))
    _capabilities(public.capabilities, exposure)
    _skills(public, exposure, skills)
    _security(public, exposure, table)
    if verdict is not None:
        public.capabilities.extensions.append(_provenance(card, verdict))
    return public


def _interfaces(exposure: Exposure, base_url: str, grpc_target: str | None) -> Iterable[AgentInterface]:
    yield AgentInterface(url=base_url, protocol_binding="JSONRPC", protocol_version=_VERSION)
    yield AgentInterface(url=base_url, protocol_binding="HTTP+JSON", protocol_version=_VERSION)
    if grpc_target is not None:
        yield AgentInterface(
            url=grpc_target, protocol_binding="GRPC", protocol_version=_VERSION, tenant=exposure.agent
        )


def _capabilities(capabilities: AgentCapabilities, exposure: Exposure) -> None:
    capabilities.streaming = capabilities.streaming and exposure.allow_streaming
    capabilities.push_notifications = exposure.allow_push
    capabilities.extended_agent_card = capabilities.extended_agent_card and exposure.allow_extended_card
    kept = [extension for extension in capabilities.extensions if extension.uri != PROVENANCE]
    del capabilities.extensions[:]
    capabilities.extensions.extend(kept)


def _skills(public: AgentCard, exposure: Exposure, allowed: frozenset[str] | None) -> None:
    shown = []
    for skill in public.skills:
        if exposure.skills and skill.id not in exposure.skills:
            continue
        if allowed is not None and skill.id in exposure.skill_rules and skill.id not in allowed:
            continue
        del skill.security_requirements[:]
        skill.security_requirements.extend(_requirements(exposure.skill_rules.get(skill.id, ())))
        shown.append(skill)
    kept = [type(skill).FromString(skill.SerializeToString()) for skill in shown]
    del public.skills[:]
    public.skills.extend(kept)


def _security(public: AgentCard, exposure: Exposure, table: GatewayTable) -> None:
    public.security_schemes.clear()
    del public.security_requirements[:]
    rules = [*exposure.callers, *(rule for rules in exposure.skill_rules.values() for rule in rules)]
    for rule in rules:
        if rule.certificate is not None:
            public.security_schemes[rule.certificate.scheme].CopyFrom(_certificate_scheme())
        if rule.token is not None:
            public.security_schemes[rule.token.scheme].CopyFrom(_token_scheme(rule.token, table))
        if rule.api_key is not None:
            public.security_schemes[rule.api_key.scheme].CopyFrom(_api_key_scheme())
    if not exposure.anonymous:
        public.security_requirements.extend(_requirements(exposure.callers))


def _requirements(rules: Iterable[Requirement]) -> Iterable[SecurityRequirement]:
    for rule in rules:
        requirement = SecurityRequirement()
        if rule.certificate is not None:
            requirement.schemes[rule.certificate.scheme].list.append(_ROLE)
        if rule.token is not None:
            requirement.schemes[rule.token.scheme].list.extend(sorted(rule.token.scopes))
        if rule.api_key is not None:
            requirement.schemes[rule.api_key.scheme].list.extend(sorted(rule.api_key.scopes) or [_ROLE])
        yield requirement


def _certificate_scheme() -> SecurityScheme:
    description = "A client certificate of an authority that this gateway accepts"
    return SecurityScheme(mtls_security_scheme=MutualTlsSecurityScheme(description=description))


def _api_key_scheme() -> SecurityScheme:
    scheme = APIKeySecurityScheme(location="header", name=API_KEY_HEADER)
    return SecurityScheme(api_key_security_scheme=scheme)


def _token_scheme(rule: TokenRule, table: GatewayTable) -> SecurityScheme:
    issuer = table.issuers[min(rule.issuers)]
    if issuer.open_id_connect_url:
        return SecurityScheme(
            open_id_connect_security_scheme=OpenIdConnectSecurityScheme(
                open_id_connect_url=issuer.open_id_connect_url
            )
        )
    if issuer.token_url and rule.scopes:
        flow = ClientCredentialsOAuthFlow(token_url=issuer.token_url)
        for scope in sorted(rule.scopes):
            flow.scopes[scope] = f"{scope} at this agent"
        return SecurityScheme(
            oauth2_security_scheme=OAuth2SecurityScheme(flows=OAuthFlows(client_credentials=flow))
        )
    return SecurityScheme(
        http_auth_security_scheme=HTTPAuthSecurityScheme(scheme="Bearer", bearer_format="JWT")
    )


def _provenance(card: AgentCard, verdict: CardVerdict) -> AgentExtension:
    extension = AgentExtension(
        uri=PROVENANCE, description="The agent's own signature, verified by the gateway"
    )
    extension.params["agentKeyId"] = verdict.kid
    extension.params["agentCardSha256"] = hashlib.sha256(canonical(card, verdict.form)).hexdigest()
    return extension
