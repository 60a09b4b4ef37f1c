"""HTTP/1.1 on the wire: uvicorn's httptools protocol with the limits of a public door.

What the parser accepts and this door does not (several hosts, upgrades, two lengths, endless heads, slow
senders) ends here with a closed connection. The client's certificate, which TLS verified, is noted for the
requests.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from kars_a2a_gateway.api import writing
from kars_a2a_gateway.errors import A2AError, Kind

_MAX_HEAD_BYTES = 32 * 1024
_MAX_HEADERS = 64
_MAX_TARGET_BYTES = 4 * 1024
_BACKLOG = 2048
_IDLE_S = 75


class _RefusedError(Exception):
    """Raised in a parser's callback; httptools reports it as a parser error, which uvicorn answers."""


class PublicProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        request_timeout_s: a whole request, head and body, must arrive within this.
        max_connections: connections of the process.
    """

    request_timeout_s: ClassVar[float] = 15.0
    max_connections: ClassVar[int] = 8192

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # uvicorn's signature
        super().__init__(*args, **kwargs)
        self._arrival_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._arrived = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Note who TLS says is there, and begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.close()
            return
        encrypted = transport.get_extra_info("ssl_object")
        if encrypted is not None:
            self.app_state = {**self.app_state, "peer_certificate": encrypted.getpeercert(binary_form=True)}
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, within the bounds on size and time of one request."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
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
        """Check the head, then let uvicorn start the application."""
        self._in_head = False
        self._head_bytes = 0
        self._check_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the whole request is here."""
        self._arrived = True
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        """Answer what is no request, and close."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = writing.rest_error(
                A2AError(Kind.INVALID_REQUEST, "the request is not acceptable HTTP/1.1")
            )
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[400] + head + body)
        self._stop_timer()
        self.transport.close()

    def _check_head(self) -> None:
        hosts = lengths = encodings = size = 0
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                lengths += 1
            elif name == b"transfer-encoding":
                encodings += 1
                if value.lower() != b"chunked":
                    raise _RefusedError
            elif name == b"upgrade":
                raise _RefusedError
        if size > _MAX_HEAD_BYTES or len(self.headers) > _MAX_HEADERS or len(self.url) > _MAX_TARGET_BYTES:
            raise _RefusedError
        if hosts != 1 or lengths + encodings > 1 or not self.url.startswith(b"/"):
            raise _RefusedError

    def _start_timer(self) -> None:
        self._arrival_timer = self.loop.call_later(self.request_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def _too_slow(self) -> None:
        self._arrival_timer = None
        if not self.transport.is_closing():
            self.transport.close()


class PublicServer(uvicorn.Server):
    """uvicorn without its own signal handling, on a socket that is given to it."""

    def __init__(
        self,
        app: Any,  # noqa: ANN401  # an ASGI application
        *,
        tls: ssl.SSLContext | None,
        drain_s: float,
        request_timeout_s: float,
        max_connections: int,
    ) -> None:
        protocol = type(
            "Protocol",
            (PublicProtocol,),
            {"request_timeout_s": request_timeout_s, "max_connections": max_connections},
        )
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=max(1, int(drain_s)),
        )
        config.load()
        if tls is not None:
            config.ssl = tls
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until `stop`."""
        await self.serve(sockets=[listener])

    def stop(self) -> None:
        """Begin to end: accept nothing more, drain, close."""
        self.should_exit = True


def listen(address: str) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host.strip("[]"), int(port)))
    listener.listen(_BACKLOG)
    listener.settimeout(0)
    return listener
