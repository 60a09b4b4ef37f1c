"""The client side of `kars.chat/1`, over the byte stream that `Sandboxes.Connect` gives.

The protocol is described beside its server, in the sdk; a test runs the two against each other.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from kars.policy.v1 import policy_pb2
from kars.sandbox.v1 import sandbox_pb2
from kars_common.errors import FailedPreconditionError, UnavailableError

from kars_cli import stubs
from kars_cli.session import Session

PROTOCOL = "kars.chat/1"
_MAX_LINE_BYTES = 64 * 1024
_CHUNK_BYTES = 32 * 1024

Event = dict[str, Any]


class ChatClient:
    """One conversation. `open`, then `say` as often as wanted, then `close`."""

    def __init__(self, session: Session, sandbox: policy_pb2.SandboxRef, port: int = 0) -> None:
        self._call = stubs.sandboxes(session).Connect()
        self._open = sandbox_pb2.ConnectOpen(sandbox=sandbox, port=port)
        self._buffer = b""
        self.hello: Event = {}

    async def open(self, timeout_s: float = 10.0) -> None:
        """Connect and read the greeting.

        Raises:
            FailedPreconditionError: `sandbox_not_running`, `chat_protocol_unknown`.
            UnavailableError: `port_refused`, `chat_timeout`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._call.write(sandbox_pb2.ConnectRequest(open=self._open))
                self.hello = await self._read()
        except TimeoutError:
            raise UnavailableError("chat_timeout", "the agent did not greet in time") from None
        if self.hello.get("protocol") != PROTOCOL:
            raise FailedPreconditionError(
                "chat_protocol_unknown",
                f"the agent speaks {str(self.hello.get('protocol'))[:40]!r}, not {PROTOCOL}",
            )

    async def say(self, text: str, session: str = "") -> AsyncIterator[Event]:
        """Send a message and yield the events of the turn; the last one is `done` or `error`.

        Raises:
            UnavailableError: `chat_closed`.
        """
        message = {"type": "message", "text": text, **({"session": session} if session else {})}
        data = json.dumps(message).encode() + b"\n"
        for start in range(0, len(data), _CHUNK_BYTES):
            await self._call.write(sandbox_pb2.ConnectRequest(data=data[start : start + _CHUNK_BYTES]))
        while True:
            event = await self._read()
            yield event
            if event.get("type") in ("done", "error"):
                return

    async def close(self) -> None:
        """End the stream."""
        self._call.cancel()

    async def _read(self) -> Event:
        while b"\n" not in self._buffer:
            answer = await self._call.read()
            if not isinstance(answer, sandbox_pb2.ConnectResponse):  # the end of the stream
                await self._raise_status()
                raise UnavailableError("chat_closed", "the agent closed the connection")
            self._buffer += answer.data
            if len(self._buffer) > 4 * _MAX_LINE_BYTES:
                raise FailedPreconditionError("chat_protocol_unknown", "the agent sent a line without end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise FailedPreconditionError(
                "chat_protocol_unknown", "the agent sent a line that is no JSON object"
            )
        return event

    async def _raise_status(self) -> None:
        """Raise what the stream ended with, when that was an error."""
        async for _ in self._call:
            pass
