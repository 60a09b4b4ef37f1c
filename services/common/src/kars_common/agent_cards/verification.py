"""Verify a card against keys that were pinned beforehand. Nothing is ever fetched.

A key set that a card itself points to (`jku`) proves nothing: whoever forges the card writes the URL. The
keys come from the resource that names the agent, or from the operator's files.
"""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from a2a.types import AgentCard, AgentCardSignature
from joserfc import jws
from joserfc.errors import JoseError

from kars_common import strict_json
from kars_common.agent_cards._jws import REGISTRY
from kars_common.agent_cards.canonical import Form, canonical
from kars_common.agent_cards.keys import CardKey
from kars_common.errors import InvalidInputError, PermissionDeniedError

MAX_SIGNATURES = 16
_MAX_PROTECTED_CHARS = 4096
_MAX_SIGNATURE_CHARS = 512


@dataclass(frozen=True, kw_only=True)
class CardVerdict:
    """The signature that held."""

    kid: str
    algorithm: str
    form: Form


def verify_card(card: AgentCard, keys: Iterable[CardKey], now: datetime) -> CardVerdict:
    """Return the first signature that one of the keys verifies.

    Raises:
        PermissionDeniedError: `card_unsigned`, `card_key_unknown` when no signature names one of the keys,
            `card_key_expired`, `card_signature_invalid`.
        InvalidInputError: `card_too_many_signatures`, `card_not_canonical`.
    """
    if not card.signatures:
        raise PermissionDeniedError("card_unsigned", f"the card of {card.name[:100]!r} has no signature")
    if len(card.signatures) > MAX_SIGNATURES:
        raise InvalidInputError("card_too_many_signatures", f"a card has at most {MAX_SIGNATURES} signatures")
    by_kid = {key.kid: key for key in keys}
    forms = {form: canonical(card, form) for form in (Form.SPECIFICATION, Form.CLIENTS)}
    reason = "card_key_unknown"
    for signature in card.signatures:
        header = protected_header(signature)
        key = by_kid.get(str(header.get("kid", "")))
        if key is None or header.get("alg") != key.algorithm:
            continue
        if key.not_after is not None and now >= key.not_after:
            reason = "card_key_expired"
            continue
        for form, payload in forms.items():
            if _holds(signature, payload, key):
                return CardVerdict(kid=key.kid, algorithm=key.algorithm, form=form)
        reason = "card_signature_invalid"
    raise PermissionDeniedError(reason, f"no signature of the card of {card.name[:100]!r} holds")


def verify_detached(token: str, payload: bytes, keys: Iterable[CardKey], now: datetime) -> CardKey:
    """Return the key that a detached JWS (`protected..signature`) over a payload was made with.

    Raises:
        PermissionDeniedError: `signature_malformed`, `signature_key_unknown`, `signature_key_expired`,
            `signature_invalid`.
    """
    pieces = token.split(".")
    if len(pieces) != 3 or pieces[1]:
        raise PermissionDeniedError("signature_malformed", "not a detached JWS")
    signature = AgentCardSignature(protected=pieces[0], signature=pieces[2])
    header = protected_header(signature)
    key = {key.kid: key for key in keys}.get(str(header.get("kid", "")))
    if key is None or header.get("alg") != key.algorithm:
        raise PermissionDeniedError("signature_key_unknown", "no accepted key made this signature")
    if key.not_after is not None and now >= key.not_after:
        raise PermissionDeniedError("signature_key_expired", "the key of this signature has expired")
    if not _holds(signature, payload, key):
        raise PermissionDeniedError("signature_invalid", "the signature does not hold")
    return key


def protected_header(signature: AgentCardSignature) -> dict[str, Any]:
    """Return what a signature says about itself, unverified; empty when it cannot be used."""
    if len(signature.protected) > _MAX_PROTECTED_CHARS or len(signature.signature) > _MAX_SIGNATURE_CHARS:
        return {}
    try:
        padded = signature.protected + "=" * (-len(signature.protected) % 4)
        header = strict_json.parse(base64.b64decode(padded, altchars=b"-_", validate=True), max_depth=4)
    except (binascii.Error, ValueError, InvalidInputError):
        return {}
    # A critical extension that is not understood must not be skipped.
    return header if isinstance(header, dict) and "crit" not in header and "b64" not in header else {}


def _holds(signature: AgentCardSignature, payload: bytes, key: CardKey) -> bool:
    encoded = base64.urlsafe_b64encode(payload).rstrip(b"=").decode()
    token = f"{signature.protected}.{encoded}.{signature.signature}"
    try:
        jws.deserialize_compact(token, key.jwk, registry=REGISTRY)
    except (JoseError, ValueError, binascii.Error):
        return False
    return True
