"""The egress service with its real Envoy, in the loop of a test, and what a sandbox does with it.

`agent` calls are raw sockets inside the sandbox's namespace: an attacker has no library that keeps it honest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kars.egress.v1 import egress_pb2_grpc
from kars_common.rpc import PeerChannel
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid
from kars_common.testing import MemoryAuthority, StaticSvidSource
from kars_egress.app import EgressApp
from kars_egress.blocklist.feeds import Fetcher
from kars_egress.policy.entries import Entry
from kars_egress.policy.sandboxes import SandboxId
from kars_egress.settings import EgressSettings

from kars_egress_testkit import world

SANDBOX = SandboxId("team", "writer")
OTHER = SandboxId("team", "reader")
DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back on a connection; status 0 when it was closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """The machine-readable reason of a refusal."""
        return self.headers.get("x-kars-reason", "")

    def json(self) -> dict[str, Any]:
        """The body as an object."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


class Agent:
    """Software in a sandbox."""

    def __init__(self, namespace: world.Namespace) -> None:
        self.namespace = namespace

    def connect(self, address: str = "127.0.0.1", port: int = 3128, timeout_s: float = 5.0) -> socket.socket:
        """Open a TCP connection from inside."""
        return self.namespace.run(lambda: socket.create_connection((address, port), timeout=timeout_s))

    def exchange(self, data: bytes, address: str = "127.0.0.1", port: int = 3128) -> Answer:
        """Send bytes on a new connection and read one answer."""
        with contextlib.closing(self.connect(address, port)) as connection:
            connection.sendall(data)
            return read_answer(connection)

    def get(self, url_or_path: str, host: str, *, method: str = "GET", extra: str = "") -> Answer:
        """Send a proxy request."""
        request = f"{method} {url_or_path} HTTP/1.1\r\nhost: {host}\r\n{extra}\r\n"
        return self.exchange(request.encode("utf-8", "surrogateescape"))

    def http(self, host: str, path: str = "/") -> Answer:
        """Fetch over plain HTTP through the explicit proxy."""
        return self.get(f"http://{host}{path}", host)

    def tunnel(self, authority: str) -> tuple[Answer, socket.socket]:
        """Ask for a tunnel; the connection stays open."""
        connection = self.connect()
        connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
        return read_answer(connection, body=False), connection

    def https(self, host: str, port: int = 443, server_name: str | None = None) -> Answer:
        """Fetch over TLS through the explicit proxy."""
        answer, connection = self.tunnel(f"{host}:{port}")
        with contextlib.closing(connection):
            if answer.status != 200:
                return Answer(answer.status, answer.headers, _rest(connection, answer))
            return self._inside(connection, host, server_name or host)

    def captured_https(self, host: str, address: str = "198.18.0.1") -> Answer:
        """Fetch over TLS as software does that knows no proxy."""
        try:
            with contextlib.closing(self.connect(address, 443)) as connection:
                return self._inside(connection, host, host)
        except OSError:
            return Answer(0, {}, b"")

    def captured_http(self, host: str, address: str = "198.18.0.1") -> Answer:
        """Fetch over HTTP as software does that knows no proxy."""
        return self.exchange(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode(), address, 80)

    @staticmethod
    def _inside(connection: socket.socket, host: str, server_name: str) -> Answer:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with context.wrap_socket(connection, server_hostname=server_name or None) as secure:
                secure.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                return read_answer(secure)
        except OSError:
            return Answer(0, {}, b"")


def read_answer(connection: socket.socket, *, body: bool = True) -> Answer:
    """Read one HTTP answer; status 0 when the other side closed."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65536)
            if not chunk:
                return Answer(0, {}, data)
            data += chunk
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        wanted = int(headers.get("content-length", "0")) if body else 0
        while len(rest) < wanted:
            chunk = connection.recv(65536)
            if not chunk:
                break
            rest += chunk
    except OSError:
        return Answer(0, {}, data)
    return Answer(int(lines[0].split()[1]), headers, rest)


def _rest(connection: socket.socket, answer: Answer) -> bytes:
    data = answer.body
    wanted = int(answer.headers.get("content-length", "0"))
    while len(data) < wanted and (chunk := connection.recv(65536)):
        data += chunk
    return data


class Egress:
    """A running service."""

    def __init__(self, app: EgressApp, authority: MemoryAuthority, settings: EgressSettings) -> None:
        self.app = app
        self.authority = authority
        self.settings = settings

    def control(self, user: str = "olga") -> tuple[PeerChannel, egress_pb2_grpc.EgressControlAsyncStub]:
        """Return an operator's channel and stub."""
        return self.control_as(self.authority.operator(user))

    def control_as(self, svid: Svid) -> tuple[PeerChannel, egress_pb2_grpc.EgressControlAsyncStub]:
        """Return a channel and stub of any identity."""
        channel = PeerChannel(
            StaticSvidSource(svid),
            f"127.0.0.1:{self.app.control_port}",
            SpiffeId.service(self.settings.trust_domain, "egress").dns_name,
        )
        return channel, channel.stub(egress_pb2_grpc.EgressControlStub)

    async def allow(self, namespace: world.Namespace, *entries: Entry, sandbox: SandboxId = SANDBOX) -> None:
        """Apply an allowlist and wait until Envoy has it."""
        self.app.enforcement.apply(sandbox, entries, str(namespace.path))
        await self.in_force(sandbox)

    async def in_force(self, sandbox: SandboxId = SANDBOX) -> None:
        """Wait until Envoy acknowledged everything of a sandbox."""
        await until(lambda: self._settled(sandbox), "Envoy acknowledges the policy")

    def _settled(self, sandbox: SandboxId) -> bool:
        from kars_egress.xds import types

        serving = list(self.app.subscriptions.serving(sandbox))
        if not serving:
            return False
        if any(subscription.refusals for subscription in serving):
            raise AssertionError(serving[0].refusals)
        names = [(types.ROUTES, f"sandbox/{sandbox}")]
        names += [
            (types.LISTENER, name)
            for name in self.app.snapshot.names(types.LISTENER)
            if name.startswith((f"sandbox/{sandbox}/", f"door/{sandbox}"))
        ]
        for kind, name in names:
            resource = self.app.snapshot.get(kind, name)
            if resource is None or serving[0].acknowledged(kind, name) != resource.version:
                return False
        return True

    async def records(self, count: int = 0) -> list[dict[str, Any]]:
        """Return the audit log's decisions, once there are at least so many."""
        await until(lambda: len(self._decisions()) >= count, f"{count} decisions are in the audit log")
        return self._decisions()

    def _decisions(self) -> list[dict[str, Any]]:
        kinds = ("egress.allowed", "egress.denied", "egress.tunnel.denied", "egress.tunnel.closed")
        return [dict(record) for record in self.app.audit.records() if record["type"] in kinds]


async def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, at most the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def serving(
    directory: Path,
    internet: world.Namespace,
    *,
    fetcher: Fetcher | None = None,
    feeds_file: Path | None = None,
    authority: MemoryAuthority | None = None,
    gateway_address: str | None = None,
    credentials_file: Path | None = None,
) -> AsyncIterator[Egress]:
    """Run the service and its Envoy for the length of a block."""
    authority = authority or MemoryAuthority()
    settings = EgressSettings(
        state_dir=directory / "state",
        svid_dir=directory,
        envoy_svid_dir=directory,
        resolver=f"{world.RESOLVER[0]}:{world.RESOLVER[1]}",
        envoy_network_namespace=internet.path,
        feeds_file=feeds_file,
        gateway_address=gateway_address,
        credentials_file=credentials_file,
        upstream_roots_file=directory / "origin.pem",
    )
    app = EgressApp(
        settings,
        StaticSvidSource(authority.service("egress")),
        StaticSvidSource(authority.service("egress-proxy")),
        fetcher=fetcher,
    )
    async with app.running():
        await until(lambda: bool(list(app.subscriptions.serving(None))), "Envoy connects")
        yield Egress(app, authority, settings)
