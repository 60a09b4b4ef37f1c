"""What was spent under each mandate, for ever: nonces and rolling caps, noted with the message."""

from kars_a2a_gateway.payments.mandates import Payment, denied
from kars_a2a_gateway.storage.scripts import Script, Statement

_DAY_MS = 24 * 3600 * 1000
_MONTH_MS = 30 * _DAY_MS


def spend(payment: Payment, now_ms: int) -> Script[None]:
    """Note a payment, or refuse it. It counts from then on, whatever becomes of the message.

    Raises:
        A2AError: AP2_DENIED: `nonceReused`, `dailyCapExceeded`, `monthlyCapExceeded`.
    """
    rows = yield Statement(
        "SELECT 1 FROM payments WHERE mandate = ? AND nonce = ?", (payment.mandate, payment.nonce)
    )
    if rows:
        raise denied("nonceReused", "this transfer was attempted before")
    for window_ms, cap, kind in (
        (_DAY_MS, payment.daily_cap, "dailyCapExceeded"),
        (_MONTH_MS, payment.monthly_cap, "monthlyCapExceeded"),
    ):
        sums = yield Statement(
            "SELECT COALESCE(SUM(amount), 0) FROM payments WHERE mandate = ? AND at_ms > ?",
            (payment.mandate, now_ms - window_ms),
        )
        if int(sums[0][0]) + payment.amount > cap:
            raise denied(kind, "the mandate's cap would be exceeded")
    yield Statement(
        "INSERT INTO payments (mandate, nonce, amount, at_ms) VALUES (?, ?, ?, ?)",
        (payment.mandate, payment.nonce, payment.amount, now_ms),
    )
