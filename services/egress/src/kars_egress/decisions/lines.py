"""One line of Envoy's log as a decision. Hosts and names in it come from agents: bounded and cleaned here."""

from dataclasses import dataclass

import orjson
from kars_common.errors import InvalidInputError, clean_text

MAX_LINE_BYTES = 64 * 1024
_MAX_HOST_CHARS = 260

_DETAILS = (
    # Envoy's own words for what our filters decided, most telling first.
    ("[blocklist]", "blocklist"),
    ("[expired]", "approval_expired"),
    ("address_denied", "address_not_allowed"),
    ("ext_authz_denied", "learning_refused"),
    ("ext_authz_error", "decision_unavailable"),
    ("route_not_found", "not_in_allowlist"),
    ("rbac_access_denied", "server_name_differs"),
    ("dns_resolution_failure", "name_not_resolved"),
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What happened to one request or one tunnel."""

    id: str
    time_s: float
    kind: str
    """`request`, or `tunnel`: what became of the bytes inside a CONNECT."""
    sandbox: str
    method: str
    host: str
    port: int
    allowed: bool
    reason: str
    rule: str
    status: int
    details: str
    upstream: str
    sent: int
    received: int

    def record(self) -> dict[str, object]:
        """Return the fields of its audit record."""
        fields: dict[str, object] = {
            "stream": self.id,
            "at": f"{self.time_s:.6f}",
            "sandbox": self.sandbox,
            "host": self.host,
            "reason": self.reason,
            "details": self.details,
            "sent": self.sent,
            "received": self.received,
        }
        optional = {"method": self.method, "port": self.port, "status": self.status, "rule": self.rule}
        return fields | {
            name: value for name, value in (optional | {"upstream": self.upstream}).items() if value
        }


def parse(line: bytes) -> Decision:
    """Return the decision that a line tells of.

    Raises:
        InvalidInputError: `log_line_invalid`.
    """
    if len(line) > MAX_LINE_BYTES:
        raise InvalidInputError("log_line_invalid", f"a log line has at most {MAX_LINE_BYTES} bytes")
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise InvalidInputError("log_line_invalid", "a log line is no JSON") from exc
    if not isinstance(fields, dict):
        raise InvalidInputError("log_line_invalid", "a log line is no JSON object")
    details = _text(fields, "details", 256)
    status = _number(fields, "status")
    kind = "tunnel" if fields.get("kind") == "tunnel" else "request"
    reason = _reason(fields, kind, details)
    host, port = _place(fields)
    return Decision(
        id=_text(fields, "id", 64),
        time_s=_time(fields),
        kind=kind,
        sandbox=_text(fields, "sandbox", 130) or _peer(fields),
        method=_text(fields, "method", 16),
        host=host,
        port=port,
        allowed=_allowed(fields, kind, details, reason),
        reason=reason,
        rule=_text(fields, "route", 128).partition("/")[2],
        status=status,
        details=details,
        upstream=_text(fields, "upstream", 64),
        sent=_number(fields, "sent"),
        received=_number(fields, "received"),
    )


def _reason(fields: dict[str, object], kind: str, details: str) -> str:
    for words, reason in _DETAILS:
        if words in details:
            return reason
    if kind == "tunnel":
        if _text(fields, "upstream", 64):
            return "tunnel"
        return "no_public_address" if _text(fields, "server_name", _MAX_HOST_CHARS) else "not_tls"
    route = _text(fields, "route", 128)
    if route.startswith(("allow/", "ask/")):
        return route.split("/")[1]
    return route or "malformed_request"


def _allowed(fields: dict[str, object], kind: str, details: str, reason: str) -> bool:
    if kind == "tunnel":
        return reason == "tunnel"
    if not _text(fields, "route", 128).startswith(("allow/", "ask/")):
        return False
    return not any(words in details for words, _ in _DETAILS)


def _place(fields: dict[str, object]) -> tuple[str, int]:
    """Return host and port as they were asked for; shown, not judged."""
    host = _text(fields, "host", _MAX_HOST_CHARS)
    if host:
        return host, 0
    authority = _text(fields, "authority", _MAX_HOST_CHARS).lower()
    name, colon, port = authority.rpartition(":")
    if colon and port.isascii() and port.isdigit() and len(port) <= 5:
        return name.removesuffix("."), int(port)
    return authority.removesuffix("."), 443 if fields.get("method") == "CONNECT" else 80


def _peer(fields: dict[str, object]) -> str:
    """Return the sandbox that a gateway's client certificate named."""
    parts = _text(fields, "peer", 256).split("/")
    return f"{parts[4]}/{parts[6]}" if len(parts) == 7 and parts[3] == "ns" else ""


def _text(fields: dict[str, object], name: str, limit: int) -> str:
    value = fields.get(name)
    return clean_text(value, limit) if isinstance(value, str) and value != "-" else ""


def _number(fields: dict[str, object], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool):
        return 0
    if isinstance(value, int):
        return max(value, 0)
    return (
        int(value)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
        else 0
    )


def _time(fields: dict[str, object]) -> float:
    value = fields.get("time")
    try:
        return float(value) if isinstance(value, str | int | float) else 0.0
    except ValueError:
        return 0.0
