"""The agent's own A2A server, through the official client: whichever binding and version its card declares.

Whatever addresses the card has, only the configured loopback address is dialled. Proxy variables are not read
and redirects not followed. A card is believed for a short while; an agent that is just waking is waited for.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
from a2a.client import A2ACardResolver, Client, ClientCallContext, ClientConfig, ClientFactory
from a2a.client.errors import AgentCardResolutionError
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    GetExtendedAgentCardRequest,
    GetTaskRequest,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
)
from kars_common.errors import InternalError, UnavailableError

_BINDINGS = ["JSONRPC", "HTTP+JSON", "GRPC"]
_CARD_AGE_S = 30.0
_RETRY_S = 0.2
_MAX_CONNECTIONS = 8192


class AgentServer:
    """One agent's A2A server. Use from one event loop; close when done."""

    def __init__(
        self,
        base_url: str,
        *,
        wake_timeout_s: float = 30.0,
        timeout_s: float = 30.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the server; nothing is dialled yet.

        Args:
            base_url: `http://127.0.0.1:<port>`, with the path that the card is under, if any.
            wake_timeout_s: how long an agent that refuses connections is waited for.
            timeout_s: longest wait for an answer that is no stream.
            clock_s: monotonic time.
        """
        self._base_url = base_url.rstrip("/")
        self._wake_timeout_s = wake_timeout_s
        self._timeout_s = timeout_s
        self._clock_s = clock_s
        self._http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            # A stream may be silent for as long as the agent thinks; it ends when the caller's does.
            timeout=httpx.Timeout(timeout_s, read=None),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=64),
        )
        self._card: AgentCard | None = None
        self._client: Client | None = None
        self._read_s = float("-inf")
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Close every connection."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._http.aclose)
            if self._client is not None:
                stack.push_async_callback(self._client.close)

    async def card(self, *, fresh: bool = False) -> AgentCard:
        """Return the agent's card, waiting for an agent that is waking.

        Raises:
            UnavailableError: `agent_unreachable`.
            InternalError: `a2a_invalid_agent_response` for a card that is none.
        """
        if self._card is not None and not fresh and self._clock_s() - self._read_s < _CARD_AGE_S:
            return self._card
        async with self._lock:
            if self._card is None or fresh or self._clock_s() - self._read_s >= _CARD_AGE_S:
                await self._read_card()
        if self._card is None:
            raise _unreachable()
        return self._card

    async def send(
        self, request: SendMessageRequest, context: ClientCallContext
    ) -> AsyncIterator[StreamResponse]:
        """Send a message and yield what the agent says: events if it streams, else its one answer."""
        async for event in (await self._connected()).send_message(request, context=context):
            yield event

    async def subscribe(self, task_id: str, context: ClientCallContext) -> AsyncIterator[StreamResponse]:
        """Follow a task."""
        async for event in (await self._connected()).subscribe(
            SubscribeToTaskRequest(id=task_id), context=context
        ):
            yield event

    async def get_task(self, request: GetTaskRequest, context: ClientCallContext) -> Task:
        """Return a task."""
        async with asyncio.timeout(self._timeout_s):
            return await (await self._connected()).get_task(request, context=context)

    async def cancel_task(self, request: CancelTaskRequest, context: ClientCallContext) -> Task:
        """Cancel a task."""
        async with asyncio.timeout(self._timeout_s):
            return await (await self._connected()).cancel_task(request, context=context)

    async def extended_card(self, context: ClientCallContext) -> AgentCard:
        """Return the extended card."""
        client = await self._connected()
        async with asyncio.timeout(self._timeout_s):
            return await client.get_extended_agent_card(GetExtendedAgentCardRequest(), context=context)

    async def _connected(self) -> Client:
        await self.card()
        if self._client is None:
            raise _unreachable()
        return self._client

    async def _read_card(self) -> None:
        deadline = self._clock_s() + self._wake_timeout_s
        resolver = A2ACardResolver(self._http, self._base_url)
        while True:
            try:
                card = await resolver.get_agent_card(http_kwargs={"timeout": self._timeout_s})
                break
            except (AgentCardResolutionError, httpx.HTTPError, OSError) as exc:
                if not _may_be_waking(exc) or self._clock_s() >= deadline:
                    raise _unreachable() from exc
                await asyncio.sleep(_RETRY_S)
        if self._client is None or card != self._card:
            self._client = self._connect(card)
        self._card, self._read_s = card, self._clock_s()

    def _connect(self, card: AgentCard) -> Client:
        local = AgentCard()
        local.CopyFrom(card)
        address = urlsplit(self._base_url).netloc
        for interface in local.supported_interfaces:
            if interface.protocol_binding == "GRPC":
                port = interface.url.rpartition(":")[2].partition("/")[0]
                interface.url = f"{urlsplit(self._base_url).hostname}:{port}"
            else:
                parts = urlsplit(interface.url)
                interface.url = f"http://{address}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        config = ClientConfig(
            httpx_client=self._http,
            grpc_channel_factory=_local_channel,
            supported_protocol_bindings=_BINDINGS,
        )
        try:
            return ClientFactory(config).create(local)
        except (ValueError, ImportError) as exc:
            raise InternalError(
                "a2a_invalid_agent_response", "the agent's card has no interface that can be called"
            ) from exc


def _unreachable() -> UnavailableError:
    return UnavailableError("agent_unreachable", "the agent's A2A server does not answer")


def _local_channel(url: str) -> grpc.aio.Channel:
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    return grpc.aio.insecure_channel(url, options=options)


def _may_be_waking(error: BaseException) -> bool:
    """Tell whether nobody listens yet, as opposed to somebody who answers something else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, httpx.ConnectError | ConnectionError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
