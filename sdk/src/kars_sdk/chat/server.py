"""Serves chat on the sandbox's loop-back: connections, turns, limits. The agent itself is plugged in.

Whoever can reach the port is let in: inside a sandbox there is one agent and nobody else, and from outside
the only way is the controller, which has asked who it is.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from kars_sdk.chat import protocol
from kars_sdk.chat.protocol import ChatEvent, Done, Failed, ProtocolError
from kars_sdk.chat.sessions import Session, Sessions

_LOG = logging.getLogger(__name__)


class Agent(Protocol):
    """What answers messages."""

    def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        """Yield the events of one turn. `Done` is added when nothing ended it; raising fails the turn."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one chat server."""

    connections: int = 16
    sessions: int = 64
    idle_s: float = 3600.0
    """A connection without a message for this long is closed."""
    write_s: float = 30.0
    """A client that does not read for this long is closed."""


class ChatServer:
    """One listener. `start`, then `close`."""

    def __init__(self, agent: Agent, *, name: str, runtime: str, limits: Limits | None = None) -> None:
        self._agent = agent
        self._hello = protocol.hello(name, runtime)
        self._limits = limits or Limits()
        self._sessions = Sessions(self._limits.sessions)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)

    async def start(self, port: int) -> int:
        """Listen on 127.0.0.1 and return the port (0 takes any)."""
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", port, limit=protocol.MAX_LINE_BYTES + 1
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cancel every turn."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= self._limits.connections:
            writer.write(protocol.encode(Failed("too_many_connections", "try again later")))
            await _end(writer)
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, TimeoutError):
            pass  # the other side went away or does not read; its turn is cancelled with it
        finally:
            self._connections.discard(task)
            await _end(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = f"connection-{next(self._numbers)}"
        await self._send(writer, self._hello)
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    line = await reader.readline()
                if not line:
                    return
                message = protocol.decode(line)
            except ValueError:  # readline: no end of line within the limit
                await self._send(writer, protocol.encode(Failed("line_too_long", "the line is too long")))
                return
            except ProtocolError as exc:
                await self._send(writer, protocol.encode(Failed(exc.reason, str(exc))))
                return
            await self._turn(reader, writer, self._sessions.open(message.session or own), message.text)

    async def _turn(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session, text: str
    ) -> None:
        if session.busy:
            busy = Failed("session_busy", "this session's last message is still being answered")
            await self._send(writer, protocol.encode(busy))
            return
        session.busy = True
        reply = asyncio.create_task(self._reply(writer, session, text), name=f"turn of {session.name}")
        gone = asyncio.create_task(_gone(reader), name="client watch")
        try:
            await asyncio.wait({reply, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                raise ConnectionResetError("the client left or spoke before the turn had ended")
            await reply
        finally:
            session.busy = False
            for task in (reply, gone):
                task.cancel()
            await asyncio.gather(reply, gone, return_exceptions=True)

    async def _reply(self, writer: asyncio.StreamWriter, session: Session, text: str) -> None:
        try:
            async with contextlib.aclosing(_as_generator(self._agent.reply(session, text))) as events:
                async for event in events:
                    await self._send(writer, protocol.encode(event))
                    if isinstance(event, Done | Failed):
                        return
        except (ConnectionError, TimeoutError):
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary to somebody else's agent
            _LOG.exception("the agent failed")
            await self._send(writer, protocol.encode(Failed("agent_failed", type(exc).__name__)))
            return
        await self._send(writer, protocol.encode(Done()))

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        async with asyncio.timeout(self._limits.write_s):
            await writer.drain()


async def _as_generator(events: AsyncIterator[ChatEvent]) -> AsyncGenerator[ChatEvent, None]:
    """Make any iterator closable."""
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _gone(reader: asyncio.StreamReader) -> None:
    """Return when the client has closed, or sent something while its turn runs."""
    await reader.read(1)


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()
