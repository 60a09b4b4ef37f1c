"""Reading and judging a payment mandate. Pure: what was spent before is the ledger's.

A mandate and an attempt are in one place, `metadata.ap2` of the message. Anywhere else they are refused, so
that no check can look where another does not. Time is ours: an attempt's own time may differ by `SKEW_S` and
counts for nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import rfc8785
from a2a.types import SendMessageRequest
from google.protobuf import json_format
from kars_common.agent_cards import verify_detached
from kars_common.errors import KarsError

from kars_a2a_gateway.errors import A2AError, Kind
from kars_a2a_gateway.policy.exposures import PaymentRule

KEY = "ap2"
SKEW_S = 300
_MAX_AMOUNT = 2**53 - 1
_MAX_TEXT = 256
_MAX_COUNTERPARTIES = 256
_MANDATE = frozenset(
    (
        *("mandateId", "principal", "currency", "dailyCap", "monthlyCap", "perTransferCap"),
        *("counterpartyAllowlist", "exp", "signature"),
    )
)
_ATTEMPT = frozenset(("mandateId", "counterparty", "amount", "currency", "transferNonce", "timestamp"))


@dataclass(frozen=True, kw_only=True)
class Payment:
    """An attempt that its mandate allows, as far as one attempt can tell. Amounts in minor units."""

    mandate: str
    """Key and id: the same id under another key is another mandate."""
    nonce: str
    amount: int
    currency: str
    counterparty: str
    daily_cap: int
    monthly_cap: int


def denied(kind: str, message: str) -> A2AError:
    """Return AP2_DENIED with its kind."""
    return A2AError(Kind.AP2_DENIED, message, metadata={"kind": kind, "why": kind})


def judge(
    request: SendMessageRequest, rule: PaymentRule | None, principal: str, now_s: float
) -> Payment | None:
    """Return the payment that a message asks for; None when it asks for none and needs none.

    Raises:
        A2AError: AP2_DENIED; `metadata.kind` is the first check that failed.
    """
    if KEY in request.metadata.fields:
        raise denied("mandateMisplaced", "a mandate belongs into the metadata of the message")
    if KEY not in request.message.metadata.fields:
        if rule is not None and rule.required:
            raise denied("commerceMandateRequired", "this agent takes only messages with a payment mandate")
        return None
    if rule is None:
        raise denied("paymentsNotAccepted", "this agent takes no payment mandates")
    document = json_format.MessageToDict(request.message.metadata)[KEY]
    if not isinstance(document, dict) or document.keys() != {"mandate", "attempt"}:
        raise denied("malformed", "ap2 has a mandate and an attempt")
    mandate = _fields(document["mandate"], _MANDATE)
    attempt = _fields(document["attempt"], _ATTEMPT)
    kid = _verify(mandate, rule, now_s)
    _check(mandate, attempt, principal, now_s)
    return Payment(
        mandate=f"{kid}/{_text(mandate, 'mandateId')}",
        nonce=_text(attempt, "transferNonce"),
        amount=_amount(attempt, "amount"),
        currency=_text(attempt, "currency"),
        counterparty=_text(attempt, "counterparty"),
        daily_cap=_amount(mandate, "dailyCap"),
        monthly_cap=_amount(mandate, "monthlyCap"),
    )


def signing_payload(mandate: Mapping[str, Any]) -> bytes:
    """Return what a mandate's signature covers: its canonical JSON with an empty signature."""
    return rfc8785.dumps({**mandate, "signature": ""})


def _verify(mandate: Mapping[str, Any], rule: PaymentRule, now_s: float) -> str:
    now = datetime.fromtimestamp(now_s, UTC)
    try:
        token = _text(mandate, "signature", 4096)
        return verify_detached(token, signing_payload(mandate), rule.mandate_keys, now).kid
    except (KarsError, rfc8785.CanonicalizationError) as exc:
        raise denied("signatureInvalid", "the mandate is not signed with an accepted key") from exc


def _check(mandate: Mapping[str, Any], attempt: Mapping[str, Any], principal: str, now_s: float) -> None:
    amount = _amount(attempt, "amount")
    allowed = mandate["counterpartyAllowlist"]
    if not isinstance(allowed, list) or len(allowed) > _MAX_COUNTERPARTIES:
        raise denied("malformed", "counterpartyAllowlist is a list")
    at_s = _amount(attempt, "timestamp")
    for holds, kind, message in (
        (_text(attempt, "mandateId") == _text(mandate, "mandateId"), "mandateMismatch", "of another mandate"),
        (_text(mandate, "principal") == principal, "principalMismatch", "the mandate is another caller's"),
        (now_s < _amount(mandate, "exp"), "mandateExpired", "the mandate has expired"),
        (_text(attempt, "currency") == _text(mandate, "currency"), "currencyMismatch", "of another currency"),
        (amount > 0, "zeroAmount", "the amount must be more than nothing"),
        (amount <= _amount(mandate, "perTransferCap"), "perTransferCapExceeded", "more than one may be"),
        (at_s <= now_s + SKEW_S, "timestampInFuture", "the attempt is of the future"),
        (at_s >= now_s - SKEW_S, "timestampTooOld", "the attempt is too old"),
        (
            "*" in allowed or _text(attempt, "counterparty") in allowed,
            "counterpartyNotAllowed",
            "the mandate does not name this counterparty",
        ),
    ):
        if not holds:
            raise denied(kind, message)


def _fields(value: object, names: frozenset[str]) -> Mapping[str, Any]:
    # Exactly these: an unknown member may be a limit that is not understood.
    if not isinstance(value, dict) or value.keys() != names:
        raise denied("malformed", "mandate or attempt has other members than it should")
    return value


def _text(values: Mapping[str, Any], name: str, most: int = _MAX_TEXT) -> str:
    value = values[name]
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
        raise denied("malformed", f"{name} must be text of at most {most} characters")
    return value


def _amount(values: Mapping[str, Any], name: str) -> int:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_AMOUNT:
        raise denied("malformed", f"{name} must be a whole number")
    if value != int(value):
        raise denied("malformed", f"{name} must be a whole number")
    return int(value)
