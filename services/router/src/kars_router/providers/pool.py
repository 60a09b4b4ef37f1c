"""`Upstream` on kept HTTP/1.1 connections: names, TLS and the pool. Chosen by measurement (ADR 0008).

Reads no proxy setting from the environment and never sends a request twice. A
connection that was kept is looked at before it is used; one that the peer has
closed meanwhile is not.
"""

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohappyeyeballs
import certifi

from kars_router.providers.http1 import Answer, Connection
from kars_router.providers.upstream import UpstreamError

MAX_IDLE_PER_ORIGIN = 256
IDLE_TIMEOUT_S = 55.0
"""Shorter than the minute after which common servers and load balancers close."""
_ADDRESS_DELAY_S = 0.25  # RFC 8305, section 5: the next address is tried beside a slow one


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections lead: the pool's key."""

    secure: bool
    host: str
    port: int


class PooledUpstream:
    """Sends requests over connections of its own."""

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float,
        ca_pem: bytes | None = None,
    ) -> None:
        """Remember how to connect; nothing is opened yet.

        Args:
            connect_timeout_s: name, address and TLS handshake together.
            read_timeout_s: longest silence within an answer.
            total_timeout_s: longest time for a whole answer.
            ca_pem: roots to trust besides the public ones.
        """
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._total_timeout_s = total_timeout_s
        self._ca_pem = ca_pem
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._all_lost: asyncio.Future[None] | None = None

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return sum(connection.usable for idle in self._idle.values() for connection in idle)

    async def post(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        credential: tuple[str, str] | None,
        body: bytes,
    ) -> Answer:
        """Send one POST; see `Upstream`."""
        origin, start = _target(url)
        lines = [start, *(f"{name}: {value}\r\n" for name, value in headers)]
        if credential is not None:
            lines.append(f"{credential[0]}: {credential[1]}\r\n")
        lines.append(f"content-length: {len(body)}\r\n\r\n")
        connection = self._kept(origin) or await self._connect(origin)
        answer = connection.ask("".join(lines).encode("latin-1") + body)
        try:
            return await answer.head()
        except BaseException:
            connection.abort()
            raise

    async def close(self) -> None:
        """Close all connections; answers under way fail."""
        for connection in tuple(self._open):
            connection.abort()
        self._idle.clear()
        if self._open:  # each hears of its end in a coming turn of the loop
            self._all_lost = asyncio.get_running_loop().create_future()
            await self._all_lost

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()  # the one used last is the one least likely to have been closed
            if connection.usable:
                return connection
        return None

    async def _connect(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
                connected = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_ADDRESS_DELAY_S, loop=loop
                )
                _, connection = await loop.create_connection(
                    functools.partial(self._new_connection, loop, origin),
                    sock=connected,
                    ssl=self._context() if origin.secure else None,
                    server_hostname=origin.host if origin.secure else None,
                )
        except TimeoutError as exc:
            raise UpstreamError(
                "the provider took too long to connect", maybe_received=False, timed_out=True
            ) from exc
        except OSError as exc:  # ssl.SSLError is one
            raise UpstreamError("the provider cannot be reached", maybe_received=False) from exc
        if not connection.usable:
            raise UpstreamError("the provider closed the connection", maybe_received=False)
        self._open.add(connection)
        return connection

    def _new_connection(self, loop: asyncio.AbstractEventLoop, origin: Origin) -> Connection:
        return Connection(
            loop,
            read_timeout_s=self._read_timeout_s,
            total_timeout_s=self._total_timeout_s,
            idle_timeout_s=IDLE_TIMEOUT_S,
            on_free=functools.partial(self._keep, self._idle.setdefault(origin, [])),
            on_lost=self._lost,
        )

    @staticmethod
    def _keep(idle: list[Connection], connection: Connection) -> None:
        if len(idle) < MAX_IDLE_PER_ORIGIN:
            idle.append(connection)
        else:
            connection.abort()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = _client_context(self._ca_pem)
        return self._tls


def _client_context(ca_pem: bytes | None) -> ssl.SSLContext:
    """Return a context that verifies against the machine's roots, and certifi's where it has none."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not _exists(paths.cafile) and not _exists(paths.capath):
        context.load_verify_locations(certifi.where())
    if ca_pem is not None:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    context.set_alpn_protocols(["http/1.1"])
    return context


def _exists(path: str | None) -> bool:
    """Tell whether a file, or a folder with something in it, is there."""
    return path is not None and (any(os.scandir(path)) if os.path.isdir(path) else os.path.isfile(path))


@functools.lru_cache(maxsize=256)
def _target(url: str) -> tuple[Origin, str]:
    """Return where a URL leads, and the beginning of a POST to it."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    origin = Origin(secure, host, parts.port or (443 if secure else 80))
    shown = f"[{host}]" if ":" in host else host
    if parts.port is not None:
        shown = f"{shown}:{parts.port}"
    path = parts.path or "/"
    return origin, f"POST {path} HTTP/1.1\r\nhost: {shown}\r\nuser-agent: kars-router\r\n"
