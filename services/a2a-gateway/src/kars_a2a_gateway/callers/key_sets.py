"""The public keys of token issuers: from the policy, or fetched with limits.

An unknown `kid` may mean a rotation, so it causes one fetch; a flood of unknown kids causes one fetch in
`_MIN_INTERVAL_S`. While an issuer's endpoint is away the keys held stay in use for `_STALE_S`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from kars_common import strict_json
from kars_common.errors import InvalidInputError, KarsError, UnavailableError

from kars_a2a_gateway.outgoing.client import GuardedClient
from kars_a2a_gateway.policy.exposures import Issuer

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 256 * 1024
_MAX_KEYS = 64
_FRESH_S = 600.0
_STALE_S = 6 * 3600.0
_MIN_INTERVAL_S = 15.0
_TIMEOUT_S = 5.0

PublicKey = ECKey | OKPKey | RSAKey
_KINDS: dict[str, type[PublicKey]] = {"EC": ECKey, "OKP": OKPKey, "RSA": RSAKey}
_MIN_RSA_BITS = 2048


@dataclass
class _Held:
    keys: dict[str, PublicKey] = field(default_factory=dict)
    fetched_s: float = float("-inf")
    attempted_s: float = float("-inf")
    generation: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class KeySets:
    """Keys by issuer and kid. One for the process."""

    def __init__(self, client: GuardedClient, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock_s = clock_s
        self._held: dict[tuple[str, str], _Held] = {}
        self.fetches = 0

    async def find(self, issuer: Issuer, kid: str) -> PublicKey | None:
        """Return the key, fetching the set when it is old or does not have it.

        Raises:
            UnavailableError: `issuer_keys_unavailable` when no keys were ever obtained, or they are too old.
        """
        source = (issuer.issuer, issuer.jwks or issuer.jwks_uri)
        held = self._held.get(source)
        if held is None:
            held = self._held[source] = _Held()
            if issuer.jwks:
                held.keys, held.fetched_s = parse_key_set(issuer.jwks.encode()), float("inf")
        now = self._clock_s()
        if now - held.fetched_s > _FRESH_S or (kid not in held.keys and not issuer.jwks):
            await self._refresh(issuer, held)
        if now - held.fetched_s > _STALE_S:
            raise UnavailableError("issuer_keys_unavailable", f"no current keys of {issuer.issuer}")
        return held.keys.get(kid)

    async def _refresh(self, issuer: Issuer, held: _Held) -> None:
        async with held.lock:
            now = self._clock_s()
            if now - held.attempted_s < _MIN_INTERVAL_S:
                return
            held.attempted_s = now
            self.fetches += 1
            try:
                answer = await self._client.request(
                    "GET",
                    issuer.jwks_uri,
                    headers=[("accept", "application/jwk-set+json, application/json")],
                    timeout_s=_TIMEOUT_S,
                    max_body_bytes=_MAX_BYTES,
                )
                if answer.status != 200:
                    raise UnavailableError("issuer_keys_unavailable", f"status {answer.status}")
                held.keys = parse_key_set(answer.body)
                held.fetched_s = now
            except KarsError as exc:
                _LOG.warning("key set not refreshed", extra={"issuer": issuer.issuer, "reason": exc.reason})


def parse_key_set(raw: bytes) -> dict[str, PublicKey]:
    """Read a JWK set; keys that cannot verify signatures are left out.

    Raises:
        InvalidInputError: `key_set_invalid`, or a reason of `strict_json`.
    """
    document = strict_json.parse(raw, max_depth=8)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise InvalidInputError("key_set_invalid", f"a key set is a list of at most {_MAX_KEYS} keys")
    keys: dict[str, PublicKey] = {}
    for entry in entries:
        key = _parse_key(entry)
        if key is not None:
            keys[str(entry["kid"])] = key
    return keys


def _parse_key(entry: Any) -> PublicKey | None:  # noqa: ANN401  # foreign JSON
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        return None
    kind = _KINDS.get(str(entry.get("kty")))
    if kind is None or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    try:
        key = kind.import_key(entry)
        public = key.public_key
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAKey) and getattr(public, "key_size", 0) < _MIN_RSA_BITS:
        return None
    return key


__all__ = ["KeySets", "PublicKey", "parse_key_set"]
