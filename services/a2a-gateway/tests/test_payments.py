"""Payment mandates: every denial can be reached, none can be walked around, and the ledger remembers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from a2a.types import Message, Part, SendMessageRequest
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from kars_a2a_gateway.errors import A2AError, Kind
from kars_a2a_gateway.payments import ledger, mandates
from kars_a2a_gateway.payments.mandates import Payment
from kars_a2a_gateway.policy.exposures import PaymentRule
from kars_a2a_gateway.storage.sqlite import SqliteDatabase
from kars_a2a_gateway_testkit.mandates import MandateKey

NOW = 1_800_000_000.0
PRINCIPAL = "oauth:https://issuer.example#alice"
KEY = MandateKey("bank")
RULE = PaymentRule(required=True, mandate_keys=(KEY.public,))
DAY_MS = 24 * 3600 * 1000


def request(ap2: Any, **fields: Any) -> SendMessageRequest:
    made = SendMessageRequest(message=Message(message_id="m", parts=[Part(text="pay")]), **fields)
    if ap2 is not None:
        json_format.ParseDict({"ap2": ap2}, made.message.metadata)
    return made


def signed(mandate: dict[str, Any] | None = None, attempt: dict[str, Any] | None = None) -> dict[str, Any]:
    return KEY.signed(PRINCIPAL, NOW, mandate, attempt)


def kind_of(made: SendMessageRequest, rule: PaymentRule | None = RULE, now_s: float = NOW) -> str:
    with pytest.raises(A2AError) as refusal:
        mandates.judge(made, rule, PRINCIPAL, now_s)
    assert refusal.value.kind is Kind.AP2_DENIED
    return refusal.value.metadata["kind"]


def test_a_good_mandate_allows_its_attempt() -> None:
    payment = mandates.judge(request(signed()), RULE, PRINCIPAL, NOW)
    assert payment == Payment(
        mandate="bank/m1", nonce="n1", amount=500, currency="EUR", counterparty="shop.example",
        daily_cap=1000, monthly_cap=5000,
    )  # fmt: skip
    everybody = signed({"counterpartyAllowlist": ["*"]}, {"counterparty": "other.example"})
    assert mandates.judge(request(everybody), RULE, PRINCIPAL, NOW) is not None
    assert mandates.judge(request(None), PaymentRule(required=False, mandate_keys=()), PRINCIPAL, NOW) is None


@pytest.mark.parametrize(
    ("mandate", "attempt", "kind"),
    [
        ({}, {"mandateId": "m2"}, "mandateMismatch"),
        ({"principal": "oauth:https://issuer.example#mallory"}, {}, "principalMismatch"),
        ({"exp": int(NOW) - 1}, {}, "mandateExpired"),
        ({}, {"currency": "USD"}, "currencyMismatch"),
        ({}, {"amount": 0}, "zeroAmount"),
        ({}, {"amount": 601}, "perTransferCapExceeded"),
        ({}, {"timestamp": int(NOW) + 301}, "timestampInFuture"),
        ({}, {"counterparty": "attacker.example"}, "counterpartyNotAllowed"),
        ({}, {"amount": 1.5}, "malformed"),
        ({}, {"amount": -1}, "malformed"),
        ({}, {"amount": "500"}, "malformed"),
        ({}, {"amount": True}, "malformed"),
        ({}, {"amount": 1e300}, "malformed"),
        ({}, {"transferNonce": ""}, "malformed"),
        ({"counterpartyAllowlist": "*"}, {}, "malformed"),
        ({"extraLimit": 5}, {}, "malformed"),
    ],
)
def test_each_denial_has_its_kind(mandate: dict[str, Any], attempt: dict[str, Any], kind: str) -> None:
    assert kind_of(request(signed(mandate, attempt))) == kind


def test_register_40_a_back_dated_attempt_is_refused_and_time_is_ours() -> None:
    """An attempt of two days ago would fall out of the day's cap if its own time counted."""
    for age_s in (301, 2 * 24 * 3600, 29 * 24 * 3600):
        assert kind_of(request(signed(None, {"timestamp": int(NOW) - age_s}))) == "timestampTooOld"


def test_register_41_a_mandate_is_looked_for_in_one_place_and_required_there() -> None:
    good = signed()
    elsewhere = request(None)
    json_format.ParseDict({"ap2": good}, elsewhere.metadata)
    assert kind_of(elsewhere) == "mandateMisplaced"
    both = request(good)
    json_format.ParseDict({"ap2": {}}, both.metadata)
    assert kind_of(both) == "mandateMisplaced"
    shapes: list[Any] = [{}, [], "x", {**good, "more": 1}, {"mandate": {}, "attempt": {}}]
    for shape in (*shapes, {"mandate": good["mandate"]}):
        assert kind_of(request(shape)) == "malformed"
    assert kind_of(request(None)) == "commerceMandateRequired"
    assert kind_of(request(good), rule=None) == "paymentsNotAccepted"


@pytest.mark.parametrize("change", ["cap", "signature", "alg", "key", "attached"])
def test_a_changed_mandate_is_not_signed(change: str) -> None:
    document = signed()
    mandate = document["mandate"]
    head, _, tail = mandate["signature"].partition("..")
    match change:
        case "cap":
            mandate["dailyCap"] = 10**9
        case "signature":
            mandate["signature"] = f"{head}..{'A' * len(tail)}"
        case "alg":
            mandate["signature"] = "eyJhbGciOiJub25lIiwia2lkIjoiYmFuayJ9.."
        case "key":
            document = MandateKey("bank", ed25519.Ed25519PrivateKey.generate()).signed(PRINCIPAL, NOW)
        case "attached":
            mandate["signature"] = f"{head}.e30.{tail}"
    assert kind_of(request(document)) == "signatureInvalid"


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mandate", "attempt", "amount", "exp", "signature"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)


@given(VALUES)
def test_any_shape_is_denied_and_nothing_else(value: Any) -> None:
    assert kind_of(request(value)) in ("malformed", "signatureInvalid", "commerceMandateRequired")


def payment(nonce: str, amount: int = 400, mandate: str = "bank/m1") -> Payment:
    return Payment(
        mandate=mandate, nonce=nonce, amount=amount, currency="EUR", counterparty="shop.example",
        daily_cap=1000, monthly_cap=1500,
    )  # fmt: skip


def test_register_40_caps_roll_by_our_clock_and_survive_a_restart(tmp_path: Path) -> None:
    async def spend(now_ms: int, *payments: Payment) -> list[str]:
        database = SqliteDatabase(tmp_path / "tasks.sqlite")
        try:
            outcomes = []
            for one in payments:
                try:
                    await database.run(lambda p=one: ledger.spend(p, now_ms))  # type: ignore[misc]
                    outcomes.append("ok")
                except A2AError as error:
                    outcomes.append(error.metadata["kind"])
            return outcomes
        finally:
            await database.close()

    day = 1_800_000_000_000
    assert asyncio.run(spend(day, payment("a"), payment("b"), payment("c"))) == [
        "ok",
        "ok",
        "dailyCapExceeded",
    ]
    assert asyncio.run(spend(day + 1000, payment("a"), payment("d", 200))) == ["nonceReused", "ok"]
    assert asyncio.run(spend(day + 1000, payment("a", mandate="other/m1"))) == ["ok"], "another mandate"
    later = day + DAY_MS + 2000
    assert asyncio.run(spend(later, payment("a"), payment("e"))) == ["nonceReused", "ok"]
    assert asyncio.run(spend(later, payment("f", 200))) == ["monthlyCapExceeded"]
    assert asyncio.run(spend(day + 31 * DAY_MS, payment("g"))) == ["ok"]


async def test_many_at_once_never_exceed_a_cap(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "tasks.sqlite")
    outcomes = await asyncio.gather(
        *(database.run(lambda n=n: ledger.spend(payment(f"n{n}", 300), 1_000)) for n in range(50)),  # type: ignore[misc]
        return_exceptions=True,
    )
    await database.close()
    assert sum(outcome is None for outcome in outcomes) == 3
