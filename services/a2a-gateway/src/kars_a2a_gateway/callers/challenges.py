"""How a refused caller is told what to bring: RFC 6750 challenges with RFC 9728 resource metadata."""

from typing import Any

from kars_a2a_gateway.errors import A2AError, Kind
from kars_a2a_gateway.policy.exposures import Exposure, GatewayTable


def metadata_url(exposure: Exposure, public_url: str) -> str:
    """Return where the protected-resource metadata of an agent is (RFC 9728, section 3.1)."""
    return f"{public_url}/.well-known/oauth-protected-resource/agents/{exposure.agent}"


def resource_metadata(exposure: Exposure, table: GatewayTable, public_url: str) -> dict[str, Any]:
    """Return the protected-resource metadata document of an agent."""
    tokens = [requirement.token for requirement in exposure.callers if requirement.token is not None]
    issuers = sorted({issuer for token in tokens for issuer in token.issuers if issuer in table.issuers})
    scopes = sorted({scope for token in tokens for scope in token.scopes})
    bound = any(token.require_bound for token in tokens)
    document: dict[str, Any] = {
        "resource": f"{public_url}/agents/{exposure.agent}",
        "authorization_servers": issuers,
        "bearer_methods_supported": ["header"],
        "tls_client_certificate_bound_access_tokens": bound,
    }
    return document | ({"scopes_supported": scopes} if scopes else {})


def refusal(exposure: Exposure, proven: bool, public_url: str) -> A2AError:  # one fact
    """Return the answer to a caller that no rule lets in: 401 without a credential, 403 with one."""
    if not proven:
        return A2AError(
            Kind.UNAUTHENTICATED,
            "this agent asks its callers to prove who they are; its card says how",
            metadata={"why": "credential_required"},
            headers=_challenge(exposure, public_url, ""),
        )
    scopes = sorted(
        {scope for item in exposure.callers if item.token is not None for scope in item.token.scopes}
    )
    parts = 'error="insufficient_scope"' + (f', scope="{" ".join(scopes)}"' if scopes else "")
    return A2AError(
        Kind.PERMISSION_DENIED,
        "no rule lets this caller reach this agent",
        metadata={"why": "caller_not_allowed"},
        headers=_challenge(exposure, public_url, parts),
    )


def invalid_credential(exposure: Exposure, reason: str, message: str, public_url: str) -> A2AError:
    """Return the answer to a credential that does not verify."""
    return A2AError(
        Kind.UNAUTHENTICATED,
        message,
        metadata={"why": reason},
        headers=_challenge(exposure, public_url, 'error="invalid_token"'),
    )


def _challenge(exposure: Exposure, public_url: str, parts: str) -> tuple[tuple[str, str], ...]:
    if not any(requirement.token is not None for requirement in exposure.callers):
        schemes = sorted({_scheme(exposure)})
        return tuple(
            ("www-authenticate", f'{scheme} realm="{exposure.agent}"') for scheme in schemes if scheme
        )
    text = f'Bearer realm="{exposure.agent}", resource_metadata="{metadata_url(exposure, public_url)}"'
    return (("www-authenticate", f"{text}, {parts}" if parts else text),)


def _scheme(exposure: Exposure) -> str:
    # There is no registered scheme for API keys and certificates; the card names the header.
    return "ApiKey" if any(requirement.api_key is not None for requirement in exposure.callers) else "Mutual"
