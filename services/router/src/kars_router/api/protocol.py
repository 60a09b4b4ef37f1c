"""HTTP/1.1 on the wire: uvicorn's httptools protocol with this door's limits.

What the parser accepts and this door does not (several hosts, upgrades,
absolute targets, endless heads, slow senders) ends here, with an error in the
wire's own form and a closed connection. Nothing refused here reaches the app.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from kars_router.api.cork import CorkedTransport
from kars_router.api.wire import error_body

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 * 1024
MAX_CONNECTIONS = 1024

_MESSAGES = {
    "malformed_request": (400, "the request is not well-formed HTTP/1.1"),
    "bad_host": (400, "exactly one Host header is required"),
    "bad_target": (400, "the request target must be a path"),
    "bad_framing": (400, "the body's length is ambiguous"),
    "upgrade_not_supported": (400, "this door does not upgrade connections"),
    "request_timeout": (408, "the request took too long to arrive"),
    "headers_too_large": (431, "the request's head is too large"),
}


class _RefusedError(Exception):
    """Raised in a parser callback; httptools reports it as a parser error, which uvicorn answers."""


class DoorProtocol(HttpToolsProtocol):
    """One connection of a door.

    Attributes:
        request_timeout_s: a whole request, head and body, must arrive within this; set by a subclass.
        max_connections: more than these are closed at once; set by a subclass.
    """

    request_timeout_s: ClassVar[float] = 30.0
    max_connections: ClassVar[int] = MAX_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's signature
        super().__init__(*args, **kwargs)
        self._arrival_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._arrived = False
        self._code = "malformed_request"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for the first request."""
        super().connection_made(CorkedTransport(transport, self.loop))  # type: ignore[arg-type]  # all that it uses
        if len(self.connections) > self.max_connections:
            transport.close()  # each costs memory outside of every other limit
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, within the bounds on size and time of one request."""
        if self._in_head:
            # One endless header never reaches a callback: count what the parser was given.
            self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._code = "headers_too_large"
            self.send_400_response("")
        elif self._arrived:
            self._stop_timer()
        elif self._arrival_timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        """Reset the bounds for a new request."""
        self._in_head, self._arrived = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the head, then let uvicorn start the app."""
        self._in_head = False
        self._head_bytes = 0
        self._check_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the whole request is here."""
        self._arrived = True
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the code says it; uvicorn calls this
        """Answer a request that cannot be served, in the wire's form, and close."""
        status, text = _MESSAGES[self._code]
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = error_body("invalid_request_error", self._code, text)
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[status] + head + body)
        self._stop_timer()
        self.transport.close()

    def _check_head(self) -> None:
        hosts = encodings = lengths = size = 0
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                lengths += 1
                if not value.isdigit():
                    self._refuse("bad_framing")
            elif name == b"transfer-encoding":
                encodings += 1
                if value.lower() != b"chunked":
                    self._refuse("bad_framing")
            elif name == b"upgrade":
                self._refuse("upgrade_not_supported")
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS or len(self.url) > MAX_TARGET_BYTES:
            self._refuse("headers_too_large")
        if hosts != 1:
            self._refuse("bad_host")
        if lengths + encodings > 1:
            self._refuse("bad_framing")
        if not self.url.startswith(b"/") or self.parser.get_http_version() not in {"1.0", "1.1"}:
            self._refuse("bad_target")

    def _refuse(self, code: str) -> None:
        self._code = code
        raise _RefusedError(code)

    def _start_timer(self) -> None:
        self._arrival_timer = self.loop.call_later(self.request_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def _too_slow(self) -> None:
        self._arrival_timer = None
        if not self.transport.is_closing():
            self._code = "request_timeout"
            self.send_400_response("")
