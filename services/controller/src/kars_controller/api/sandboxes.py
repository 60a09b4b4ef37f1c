"""The Sandboxes service: how a sandbox is, its logs, a way in, and what this host can isolate."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from kars.policy.v1 import policy_pb2
from kars.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.errors import FailedPreconditionError, InvalidInputError, NotFoundError, UnavailableError
from kars_common.rpc import caller

from kars_controller.api import sandbox_messages as messages
from kars_controller.distribution import PolicySessions
from kars_controller.platforms.base import Platform, SandboxKey
from kars_controller.reconcile.env import CHAT_PORT
from kars_controller.resources import ResourceKey, ResourceStore

_DEFAULT_TAIL = 100
_MAX_TAIL = 10_000
_CHUNK_BYTES = 64 * 1024

Context = Any


class SandboxesServicer(sandbox_pb2_grpc.SandboxesServicer):
    """Serves the platform to operators; only sandboxes that are resources exist here."""

    def __init__(
        self, store: ResourceStore, platform: Platform, sessions: PolicySessions, audit: AuditLog
    ) -> None:
        self._store = store
        self._platform = platform
        self._sessions = sessions
        self._audit = audit

    async def GetSandbox(  # noqa: N802 - named by the contract
        self, request: sandbox_pb2.GetSandboxRequest, _context: Context
    ) -> sandbox_pb2.GetSandboxResponse:
        """Return what the platform observes."""
        key = self._existing(request.sandbox)
        status = await self._platform.observe(key)
        if status is None:
            return sandbox_pb2.GetSandboxResponse()
        answer = self._sessions.answer(key)
        return sandbox_pb2.GetSandboxResponse(
            containers=[messages.container(status.agent), messages.container(status.router)],
            router_endpoint=answer.admin_endpoint if answer.connected else "",
            controls=[messages.control(control) for control in status.isolation],
        )

    async def StreamLogs(  # noqa: N802 - named by the contract
        self, request: sandbox_pb2.StreamLogsRequest, _context: Context
    ) -> AsyncIterator[sandbox_pb2.StreamLogsResponse]:
        """Stream a container's log."""
        key = self._existing(request.sandbox)
        tail = request.tail_lines or _DEFAULT_TAIL
        if not 1 <= tail <= _MAX_TAIL:
            raise InvalidInputError("tail_lines_invalid", f"tail_lines is 1 to {_MAX_TAIL}, got {tail}")
        container = request.container or "agent"
        rest = b""
        async for chunk in self._platform.logs(key, container, tail=tail, follow=request.follow):
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield sandbox_pb2.StreamLogsResponse(data=messages.printable(whole + newline))
            elif len(rest) > _CHUNK_BYTES:  # a line without end must not fill the memory
                yield sandbox_pb2.StreamLogsResponse(data=messages.printable(rest + b"\n"))
                rest = b""
        if rest:
            yield sandbox_pb2.StreamLogsResponse(data=messages.printable(rest + b"\n"))

    async def Connect(  # noqa: N802 - named by the contract
        self, requests: AsyncIterator[sandbox_pb2.ConnectRequest], context: Context
    ) -> AsyncIterator[sandbox_pb2.ConnectResponse]:
        """Carry bytes between an operator and a port inside a sandbox."""
        operator = caller(context)
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "open":
            raise InvalidInputError("connect_invalid", "the first message must be open")
        key = self._existing(first.open.sandbox)
        port = first.open.port or CHAT_PORT
        if not 1 <= port <= 65535:
            raise InvalidInputError("port_invalid", f"port is 1 to 65535, got {port}")
        connection = await self._dial(key, port)
        fields = {"sandbox": str(key), "port": port, "operator": str(operator)}
        await self._audit.durable(self._audit.append("sandbox.connected", fields))
        loop = asyncio.get_running_loop()
        with contextlib.closing(connection):
            upload = asyncio.create_task(_upload(requests, connection), name=f"connect {key}:{port}")
            try:
                while data := await _receive(loop, connection):
                    yield sandbox_pb2.ConnectResponse(data=data)
            finally:
                upload.cancel()
                await asyncio.gather(upload, return_exceptions=True)

    async def GetHostReport(  # noqa: N802 - named by the contract
        self, _request: sandbox_pb2.GetHostReportRequest, _context: Context
    ) -> sandbox_pb2.GetHostReportResponse:
        """Tell which isolation this host gives."""
        return messages.host_report(await self._platform.host_report())

    def _existing(self, ref: policy_pb2.SandboxRef) -> SandboxKey:
        if self._store.find(ResourceKey("KarsSandbox", ref.namespace, ref.name)) is None:
            raise NotFoundError("sandbox_not_found", f"no sandbox {ref.namespace}/{ref.name}")
        return SandboxKey(ref.namespace, ref.name)

    async def _dial(self, key: SandboxKey, port: int) -> socket.socket:
        try:
            connection = await self._platform.dial(key, port)
        except NotFoundError as exc:
            raise FailedPreconditionError("sandbox_not_running", f"sandbox {key} does not run") from exc
        except UnavailableError as exc:
            raise UnavailableError(
                "port_refused", f"nothing listens on port {port} of sandbox {key}"
            ) from exc
        connection.settimeout(0)
        return connection


async def _upload(requests: AsyncIterator[sandbox_pb2.ConnectRequest], connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    async for request in requests:
        await loop.sock_sendall(connection, request.data)
    # The operator said all it has to say; the answer may still be coming.
    connection.shutdown(socket.SHUT_WR)


async def _receive(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(connection, _CHUNK_BYTES)
    except ConnectionError:
        return b""
