"""Denials that come from a provider's failure or refusal, cleaned of everything it must not show."""

import email.utils
import re
import time
from collections.abc import Callable
from typing import Any

from kars_router.inference.output import provider_error
from kars_router.pipeline.verdicts import DecidedBy, Decision, Deny
from kars_router.providers.upstream import UpstreamError

MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE_CHARS = 512
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def not_configured() -> Deny:
    """Return the denial for a policy whose providers this router was not given."""
    return Deny(
        status=503,
        error_type="proxy_error",
        code="provider_not_configured",
        message="no provider is configured for the models that policy allows",
    )


def unreachable(exc: UpstreamError) -> Deny:
    """Return the denial for a transport failure."""
    if exc.timed_out:
        return Deny(
            status=504,
            error_type="proxy_error",
            code="gateway_timeout",
            message="the inference backend took too long",
            decided_by=DecidedBy.PROVIDER,
        )
    return provider_error("Failed to reach inference backend")


def too_large(limit: int) -> Deny:
    """Return the denial for an answer over the limit."""
    return Deny(
        status=502,
        error_type="proxy_error",
        code="response_too_large",
        message=f"the answer is larger than {limit} bytes",
        decided_by=DecidedBy.ROUTER,
    )


def may_fall_back(denial: Deny) -> bool:
    """Tell whether another model may be asked: after 429, any 5xx and transport failures."""
    return denial.status == 429 or denial.status >= 500


def from_answer(
    status: int, document: dict[str, Any], retry_after: str | None, redact: Callable[[str], str]
) -> Deny:
    """Turn a provider's non-2xx answer into a denial."""
    if status in {401, 403} and not _content_filtered(document):
        # The router's own credential was refused: no business of the agent's, and the text may name the key.
        return Deny(
            status=502,
            error_type="proxy_error",
            code="provider_auth_failed",
            message="the provider refused the router's credential",
            decided_by=DecidedBy.PROVIDER,
        )
    if status < 400:
        return provider_error("the provider answered with a redirect, which is not followed")
    error = document.get("error")
    fields = error if isinstance(error, dict) else {}
    message = fields.get("message") if isinstance(fields.get("message"), str) else ""
    filtered = _content_filtered(document)
    default = "rate_limit_exceeded" if status == 429 else "provider_error"
    return Deny(
        status=status if status <= 599 else 502,
        error_type=_word(fields.get("type"), "upstream_error", redact),
        code="content_filter" if filtered else _word(fields.get("code"), default, redact),
        message=_CONTROL.sub(" ", redact(str(message)))[:_MAX_MESSAGE_CHARS]
        or f"the provider answered {status}",
        decision=Decision.RATE_LIMITED if status == 429 else Decision.BLOCKED,
        decided_by=DecidedBy.PROVIDER,
        retry_after_s=_seconds(retry_after),
    )


def _content_filtered(document: dict[str, Any]) -> bool:
    error = document.get("error")
    if not isinstance(error, dict):
        return False
    inner = error.get("innererror")
    return error.get("code") == "content_filter" or (
        isinstance(inner, dict) and "content_filter_result" in inner
    )


def _word(value: object, default: str, redact: Callable[[str], str]) -> str:
    """Return a provider's code if it is a plain word that holds no secret."""
    if isinstance(value, str) and _WORD.fullmatch(value) and redact(value) == value:
        return value
    return default


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After value, seconds or date; None when absent or unreadable."""
    if retry_after is None or len(retry_after) > 64:
        return None
    if re.fullmatch(r"\d{1,6}(\.\d{1,3})?", retry_after.strip()):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
