"""An HTTP client that dials only what the guard lets through.

No redirect is followed, no proxy variable is read, no connection goes to an address that was not judged in
the same breath. Answers are bounded.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

import certifi
import httpcore
from kars_common.errors import InvalidInputError, KarsError, PermissionDeniedError, UnavailableError

from kars_a2a_gateway.outgoing.guard import Guard

_CONNECT_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 64


class _RefusedDialError(httpcore.ConnectError):
    """The guard said no; told apart from a connection that failed."""

    def __init__(self, refusal: PermissionDeniedError) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves, judges and dials one address."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Dial the first address of a name, if every address of it passes."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as exc:
            raise httpcore.ConnectError("the host's name does not resolve") from exc
        addresses = [str(entry[4][0]) for entry in found]
        try:
            # All of them: a name that also points inside is an attack, not an accident.
            for address in addresses:
                self._guard.check_address(address)
        except PermissionDeniedError as refusal:
            raise _RefusedDialError(refusal) from refusal
        if not addresses:
            raise httpcore.ConnectError("the host has no address")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002  # httpcore's signature
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """Refuse."""
        raise httpcore.ConnectError("no unix sockets")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a target said; the body is bounded, and empty where nobody wants it."""

    status: int
    body: bytes


class GuardedClient:
    """Requests to the outside. Close when done."""

    def __init__(self, guard: Guard, *, roots_pem: bytes = b"") -> None:
        """Build; nothing is dialled yet.

        Args:
            guard: judges URLs and addresses.
            roots_pem: more TLS roots than the public ones.
        """
        self.guard = guard
        context = ssl.create_default_context(cafile=certifi.where())
        if roots_pem:
            context.load_verify_locations(cadata=roots_pem.decode())
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            network_backend=_GuardedBackend(guard),
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=16,
            keepalive_expiry=10.0,
            http1=True,
            retries=0,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: list[tuple[str, str]],
        content: bytes = b"",
        timeout_s: float,
        max_body_bytes: int = 0,
    ) -> Answer:
        """Send one request.

        Args:
            method: HTTP method.
            url: checked again here, whatever was checked before.
            headers: without Host and Content-Length.
            content: the body.
            timeout_s: for all of it.
            max_body_bytes: how much of the answer is read; 0 reads none.

        Raises:
            PermissionDeniedError: `target_not_allowed`.
            InvalidInputError: `target_url_invalid`.
            UnavailableError: `target_unreachable`, `target_answer_too_large`.
        """
        self.guard.check_url(url)
        limits = {"connect": _CONNECT_TIMEOUT_S, "read": timeout_s, "write": timeout_s, "pool": timeout_s}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._pool.stream(
                    method, url, headers=headers, content=content, extensions={"timeout": limits}
                ) as response,
            ):
                body = await _bounded(response, max_body_bytes)
                return Answer(status=response.status, body=body)
        except _RefusedDialError as exc:
            raise exc.refusal from exc
        except KarsError:
            raise
        except (TimeoutError, OSError, httpcore.NetworkError, httpcore.TimeoutException) as exc:
            raise UnavailableError("target_unreachable", "the target did not answer") from exc
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol, ssl.SSLError) as exc:
            raise UnavailableError("target_unreachable", "the target does not speak HTTP over TLS") from exc
        except (ValueError, UnicodeError) as exc:
            raise InvalidInputError("target_url_invalid", "the URL or a header cannot be sent") from exc


async def _bounded(response: httpcore.Response, limit: int) -> bytes:
    if limit == 0:
        return b""  # leaving the stream closes the connection; nobody has to read what was sent
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > limit:
            raise UnavailableError("target_answer_too_large", f"the answer has more than {limit} bytes")
    return bytes(body)
