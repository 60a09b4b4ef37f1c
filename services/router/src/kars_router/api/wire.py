"""The wire shapes of this door: error bodies, headers, plain answers. OpenAI's error form throughout."""

import math
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from kars_router.pipeline.ids import new_trace_id
from kars_router.pipeline.verdicts import Decision, Deny

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

TRACE_HEADER = b"x-kars-trace-id"
_TRACE_ID = re.compile(rb"[A-Za-z0-9_-]{1,128}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def trace_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the caller's trace id when it is well-formed, else a fresh one."""
    for name, value in headers:
        if name == TRACE_HEADER and _TRACE_ID.fullmatch(value):
            return value.decode()
    return new_trace_id()


def error_body(error_type: str, code: str, message: str, param: str | None = None) -> bytes:
    """Return an error in the wire's form."""
    return orjson.dumps({"error": {"message": message, "type": error_type, "code": code, "param": param}})


def bad_request(status: int, code: str, message: str) -> Deny:
    """Return the denial of a request that is not one."""
    return Deny(status=status, error_type="invalid_request_error", code=code, message=message, gate="door")


def denial_headers(denial: Deny) -> Headers:
    """Return the decision headers, and when another try can succeed."""
    headers: Headers = [
        (b"x-kars-decision", denial.decision.value.encode()),
        (b"x-kars-decision-by", denial.decided_by.value.encode()),
        (b"x-kars-decision-reason", _UNPRINTABLE.sub(" ", f"{denial.code}: {denial.message}")[:512].encode()),
    ]
    if denial.status in {429, 503} and denial.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(denial.retry_after_s))).encode()))
    if denial.decision in {Decision.BUDGET_EXCEEDED, Decision.BLOCKED} and denial.status < 500:
        # The official clients retry 429 and 409 by themselves; another try cannot help here.
        headers.append((b"x-should-retry", b"false"))
    return headers


async def respond(send: Send, status: int, body: bytes, headers: Headers, content_type: bytes) -> None:
    """Send one whole response."""
    head = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, denial: Deny, headers: Headers, param: str | None = None) -> None:
    """Send a denial as one whole response."""
    body = error_body(denial.error_type, denial.code, denial.message, param)
    await respond(send, denial.status, body, [*headers, *denial_headers(denial)], b"application/json")
