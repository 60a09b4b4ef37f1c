"""Bearer tokens: JWTs of known issuers, verified in full before a single claim is believed.

Order: size, header (`alg` of the issuer's list, no `crit`), issuer known, key by `kid` of that issuer,
signature, then issuer, audience, times, and the binding to a certificate (RFC 8705). A verified token is
remembered by its hash until it ends or the policy changes, so that its signature is not computed again for
each request.
"""

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jws import JWSRegistry
from kars_common import strict_json
from kars_common.errors import InvalidInputError, UnauthenticatedError

from kars_a2a_gateway.callers.key_sets import KeySets
from kars_a2a_gateway.policy.exposures import GatewayTable, Issuer

MAX_TOKEN_CHARS = 8192
_TYPES = frozenset(("", "jwt", "at+jwt", "application/at+jwt"))
_REMEMBERED = 8192


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What a verified token says."""

    issuer: str
    subject: str
    scopes: frozenset[str]
    expires_s: float
    bound_thumbprint: str
    """Hex SHA-256 of the certificate it is bound to; empty for none."""


class _Registry(JWSRegistry):
    max_header_length = 4096

    def get_alg(self, name: str) -> Any:  # noqa: ANN401  # the library does not export its model
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError("algorithm not accepted")
        return self.algorithms[name]


class TokenVerifier:
    """Verifies tokens against one table at a time."""

    def __init__(self, keys: KeySets) -> None:
        self._keys = keys
        self._remembered: OrderedDict[bytes, TokenFacts] = OrderedDict()
        self._table: GatewayTable | None = None

    async def verify(self, token: str, table: GatewayTable, now_s: float) -> TokenFacts:
        """Return the facts of a token.

        Raises:
            UnauthenticatedError: `token_malformed`, `token_algorithm_not_accepted`, `token_issuer_unknown`,
                `token_key_unknown`, `token_signature_invalid`, `token_audience_wrong`, `token_expired`,
                `token_not_yet_valid`, `token_lifetime_too_long`, `token_claims_invalid`.
            UnavailableError: the issuer's keys cannot be had.
        """
        if self._table is not table:  # other issuers, audiences or keys: verify everything anew
            self._table = table
            self._remembered.clear()
        name = hashlib.sha256(token.encode()).digest()
        known = self._remembered.get(name)
        if known is not None and now_s < known.expires_s:
            self._remembered.move_to_end(name)
            return known
        facts = await self._verify(token, table.issuers, now_s)
        self._remembered[name] = facts
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return facts

    async def _verify(self, token: str, issuers: Mapping[str, Issuer], now_s: float) -> TokenFacts:
        header, unverified = _parts(token)
        issuer = issuers.get(str(unverified.get("iss")))
        if issuer is None:
            raise UnauthenticatedError("token_issuer_unknown", "no rule accepts this token's issuer")
        if header.get("alg") not in issuer.algorithms:
            raise UnauthenticatedError(
                "token_algorithm_not_accepted", "the token's algorithm is not accepted"
            )
        key = await self._keys.find(issuer, str(header.get("kid", "")))
        if key is None:
            raise UnauthenticatedError(
                "token_key_unknown", "the token names a key that its issuer does not have"
            )
        registry = _Registry(algorithms=issuer.algorithms, strict_check_header=False)
        try:
            jws.deserialize_compact(token, key, registry=registry)
        except (JoseError, ValueError, TypeError, binascii.Error) as exc:
            raise UnauthenticatedError(
                "token_signature_invalid", "the token's signature does not hold"
            ) from exc
        return _judge(unverified, issuer, now_s)  # verified by now


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    pieces = token.split(".")
    if len(token) > MAX_TOKEN_CHARS or len(pieces) != 3 or not token.isascii():
        raise UnauthenticatedError("token_malformed", "the token is not a signed JWT")
    header, claims = _decode(pieces[0]), _decode(pieces[1])
    if "crit" in header or str(header.get("typ", "")).lower() not in _TYPES:
        raise UnauthenticatedError("token_malformed", "the token is of another kind")
    return header, claims


def _decode(piece: str) -> dict[str, Any]:
    try:
        raw = base64.b64decode(piece + "=" * (-len(piece) % 4), altchars=b"-_", validate=True)
        document = strict_json.parse(raw, max_depth=16)
    except (binascii.Error, ValueError, InvalidInputError) as exc:
        raise UnauthenticatedError("token_malformed", "the token is not a signed JWT") from exc
    if not isinstance(document, dict):
        raise UnauthenticatedError("token_malformed", "the token is not a signed JWT")
    return document


def _judge(claims: Mapping[str, Any], issuer: Issuer, now_s: float) -> TokenFacts:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(item, str) and item in issuer.audiences for item in audiences):
        raise UnauthenticatedError("token_audience_wrong", "the token is for somebody else")
    expires = _seconds(claims, "exp", required=True)
    if now_s >= expires + issuer.skew_s:
        raise UnauthenticatedError("token_expired", "the token has expired")
    if now_s < _seconds(claims, "nbf") - issuer.skew_s or now_s < _seconds(claims, "iat") - issuer.skew_s:
        raise UnauthenticatedError("token_not_yet_valid", "the token is not valid yet")
    if issuer.max_lifetime_s and expires - _seconds(claims, "iat", required=True) > issuer.max_lifetime_s:
        raise UnauthenticatedError("token_lifetime_too_long", "the token lives longer than is accepted")
    subject = claims.get("sub", claims.get("client_id"))
    if not isinstance(subject, str) or not 0 < len(subject) <= 512 or not subject.isprintable():
        raise UnauthenticatedError("token_claims_invalid", "the token names no subject")
    return TokenFacts(
        issuer=issuer.issuer,
        subject=subject,
        scopes=_scopes(claims),
        expires_s=expires + issuer.skew_s,
        bound_thumbprint=_bound(claims),
    )


def _seconds(claims: Mapping[str, Any], name: str, *, required: bool = False) -> float:
    value = claims.get(name)
    if value is None and not required:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise UnauthenticatedError("token_claims_invalid", f"claim {name} must be a time in seconds")
    return float(value)


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    scope = claims.get("scope", claims.get("scp", ""))
    found = scope.split() if isinstance(scope, str) else scope
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UnauthenticatedError("token_claims_invalid", "claim scope must be text")
    return frozenset(found)


def _bound(claims: Mapping[str, Any]) -> str:
    if "cnf" not in claims:
        return ""
    confirmation = claims["cnf"]
    thumbprint = confirmation.get("x5t#S256") if isinstance(confirmation, dict) else None
    try:
        raw = base64.b64decode(str(thumbprint) + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        # A binding that is not understood must not be taken for no binding.
        raise UnauthenticatedError("token_binding_not_understood", "the token is bound in an unknown way")
    return raw.hex()


__all__ = ["MAX_TOKEN_CHARS", "TokenFacts", "TokenVerifier"]
