"""A transport that writes once a turn of the loop: a response's head and body leave in one packet.

uvicorn writes them one after the other, and each write is a system call and a wake-up of the reader.
Measured: a fourteenth of the router's work for a call. Nothing waits longer than to the next turn.
"""

import asyncio
from typing import Any


class CorkedTransport:
    """The part of `asyncio.Transport` that uvicorn's HTTP protocol uses, over the real one."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keep data for the end of this turn."""
        if not self._held:
            self._loop.call_soon(self._uncork)
        self._held.append(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self._uncork()
        self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether it closes or is closed."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Read no more for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """Return what the real transport knows."""
        return self._transport.get_extra_info(name, default)

    def _uncork(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))
