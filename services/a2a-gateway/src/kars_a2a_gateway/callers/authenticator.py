"""From credentials to a principal, by the rules of one exposure.

1. What was presented is verified. A credential that does not verify ends the request, even where anonymous
   callers are let in: a forgery is not a missing credential.
2. The first requirement whose parts are all met decides who the caller is.
3. Without any credential: a challenge, or the shared anonymous principal where the resource says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kars_common.errors import UnauthenticatedError, UnavailableError

from kars_a2a_gateway import errors
from kars_a2a_gateway.callers import api_keys, certificates, challenges
from kars_a2a_gateway.callers.certificates import CertificateFacts
from kars_a2a_gateway.callers.principals import ANONYMOUS, Credentials, Principal, PrincipalKind
from kars_a2a_gateway.callers.tokens import TokenFacts, TokenVerifier
from kars_a2a_gateway.policy.exposures import ApiKey, Exposure, GatewayTable, Requirement


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the credentials of one request prove."""

    certificate: CertificateFacts | None
    token: TokenFacts | None
    api_key: ApiKey | None

    @property
    def any(self) -> bool:
        """Whether anything was proven."""
        return self.certificate is not None or self.token is not None or self.api_key is not None


class Authenticator:
    """Authenticates the callers of every door."""

    def __init__(self, tokens: TokenVerifier, public_url: str) -> None:
        self._tokens = tokens
        self._public_url = public_url

    async def authenticate(
        self, exposure: Exposure, credentials: Credentials, table: GatewayTable, now_s: float
    ) -> Principal:
        """Return the caller.

        Raises:
            A2AError: UNAUTHENTICATED or PERMISSION_DENIED with a challenge, UNAVAILABLE when an issuer's keys
                cannot be had. Its metadata has the stable reason.
        """
        facts = await self._facts(exposure, credentials, table, now_s)
        for requirement in exposure.callers:
            if meets(requirement, facts):
                return self._with_skills(_principal(requirement, facts), exposure, facts)
        if not facts.any and exposure.anonymous:
            return self._with_skills(ANONYMOUS, exposure, facts)
        raise challenges.refusal(exposure, facts.any, self._public_url)

    async def _facts(
        self, exposure: Exposure, credentials: Credentials, table: GatewayTable, now_s: float
    ) -> Facts:
        certificate = None
        if credentials.certificate_der is not None:
            certificate = certificates.read(credentials.certificate_der)
            if certificate is None or now_s >= certificate.not_after_s:
                raise self._invalid(exposure, "certificate_invalid", "the client certificate is not valid")
        token = await self._token(exposure, credentials, table, now_s)
        bound = token.bound_thumbprint if token is not None else ""
        if bound and (certificate is None or certificate.thumbprint != bound):
            raise self._invalid(exposure, "token_not_bound", "the token is bound to another certificate")
        return Facts(
            certificate=certificate, token=token, api_key=self._api_key(exposure, credentials, table, now_s)
        )

    async def _token(
        self, exposure: Exposure, credentials: Credentials, table: GatewayTable, now_s: float
    ) -> TokenFacts | None:
        if not credentials.authorization:
            return None
        scheme, _, token = credentials.authorization[0].strip().partition(" ")
        if len(credentials.authorization) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise self._invalid(exposure, "authorization_not_understood", "one bearer token is understood")
        try:
            return await self._tokens.verify(token.strip(), table, now_s)
        except UnauthenticatedError as exc:
            raise self._invalid(exposure, exc.reason, exc.message) from exc
        except UnavailableError as exc:
            raise errors.unavailable("the issuer's keys cannot be had now", 5) from exc

    def _api_key(
        self, exposure: Exposure, credentials: Credentials, table: GatewayTable, now_s: float
    ) -> ApiKey | None:
        if not credentials.api_key:
            return None
        key = None
        if len(credentials.api_key) == 1:
            now = datetime.fromtimestamp(now_s, UTC)
            key = api_keys.verify(credentials.api_key[0], table.api_keys, now)
        if key is None:
            raise self._invalid(exposure, "api_key_invalid", "the API key is not accepted")
        return key

    def _invalid(self, exposure: Exposure, reason: str, message: str) -> errors.A2AError:
        return challenges.invalid_credential(exposure, reason, message, self._public_url)

    def _with_skills(self, principal: Principal, exposure: Exposure, facts: Facts) -> Principal:
        if not exposure.skill_rules:
            return principal
        denied = {name for name, rules in exposure.skill_rules.items() if not _any_met(rules, facts)}
        return Principal(
            kind=principal.kind,
            id=principal.id,
            scopes=principal.scopes,
            skills=frozenset(set(exposure.skill_rules) - denied),
        )


def meets(requirement: Requirement, facts: Facts) -> bool:
    """Tell whether every part of a requirement is met."""
    certificate, token, key = requirement.certificate, requirement.token, requirement.api_key
    if certificate is not None and not (
        facts.certificate is not None and certificates.satisfies(facts.certificate, certificate)
    ):
        return False
    if token is not None and not (
        facts.token is not None
        and facts.token.issuer in token.issuers
        and token.scopes <= facts.token.scopes
        and (not token.subjects or facts.token.subject in token.subjects)
        and (not token.require_bound or bool(facts.token.bound_thumbprint))
    ):
        return False
    return key is None or (
        facts.api_key is not None and facts.api_key.id in key.key_ids and key.scopes <= facts.api_key.scopes
    )


def _any_met(requirements: Sequence[Requirement], facts: Facts) -> bool:
    return any(meets(requirement, facts) for requirement in requirements)


def _principal(requirement: Requirement, facts: Facts) -> Principal:
    """Name the caller by the strongest part of what it was let in for: who it is, not how it connects."""
    if requirement.token is not None and facts.token is not None:
        token = facts.token
        return Principal(
            kind=PrincipalKind.TOKEN, id=f"oauth:{token.issuer}#{token.subject}", scopes=token.scopes
        )
    if requirement.certificate is not None and facts.certificate is not None:
        return Principal(kind=PrincipalKind.CERTIFICATE, id=f"certificate:{facts.certificate.subject}")
    if facts.api_key is None:
        raise errors.A2AError(errors.Kind.INTERNAL_ERROR, "no part of the requirement names a caller")
    key = facts.api_key
    return Principal(kind=PrincipalKind.API_KEY, id=f"key:{key.id}", scopes=key.scopes)
