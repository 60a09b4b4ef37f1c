"""The controller's end of one pod's control socket.

`request` makes one short exchange. `PodWatch` keeps a connection on which the supervisor pushes; its end
means that the supervisor is gone. Nothing is polled.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kars_common.errors import UnavailableError

from kars_controller.platforms.base import PodStatus
from kars_controller.platforms.local import channel, status_codec

_TIMEOUT_S = 10.0
_CHUNK = 1 << 16


async def request(path: Path, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Send one message; return the answer and the descriptors that came with it.

    Raises:
        UnavailableError: `supervisor_unavailable`.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            with await _connect(path) as connection:
                await asyncio.get_running_loop().sock_sendall(connection, channel.encode(message))
                return await _answer(connection)
    except (OSError, TimeoutError, channel.ChannelError) as error:
        raise UnavailableError(
            "supervisor_unavailable", f"the pod's supervisor does not answer: {error}"
        ) from error


async def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(0)
    try:
        with channel.address(path) as short:
            await asyncio.get_running_loop().sock_connect(connection, short)
        if channel.peer_uid(connection) not in {0, os.geteuid()}:
            raise ConnectionRefusedError("the control socket belongs to somebody else")
    except OSError:
        connection.close()
        raise
    return connection


async def _answer(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    lines, received = channel.Lines(), list[int]()
    while True:
        await _readable(connection)
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, _CHUNK, 4)
        except BlockingIOError:
            continue
        received += descriptors
        if not data:
            raise ConnectionResetError("closed without an answer")
        for message in lines.feed(data):
            return message, received


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection.fileno())


class PodWatch:
    """The last status that a supervisor pushed, and word of every new one."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._output = {"agent": asyncio.Event(), "router": asyncio.Event()}
        self.supervisor_pid = 0
        self.status: PodStatus | None = None
        self.ended = asyncio.Event()

    async def start(self) -> None:
        """Connect and wait for the first status.

        Raises:
            UnavailableError: `supervisor_unavailable`.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                connection = await _connect(self._path)
                self.supervisor_pid = channel.peer_pid(connection)
                reader, writer = await asyncio.open_unix_connection(sock=connection, limit=channel.MAX_LINE)
                writer.write(channel.encode({"op": "watch"}))
                self._task = asyncio.create_task(self._follow(reader, writer), name=f"watch {self._path}")
                await self._first.wait()
        except (OSError, TimeoutError) as error:
            await self.close()
            raise UnavailableError(
                "supervisor_unavailable", f"the pod's supervisor does not answer: {error}"
            ) from error
        if self.status is None:
            raise UnavailableError("supervisor_unavailable", "the pod's supervisor ended at once")

    async def output(self, container: str) -> None:
        """Wait for output of a container, or for the supervisor's end."""
        event = self._output[container]
        await event.wait()
        if not self.ended.is_set():
            event.clear()

    async def close(self) -> None:
        """Stop watching; the pod goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = channel.Lines()
        try:
            while data := await reader.read(_CHUNK):
                for message in lines.feed(data):
                    self._take(message)
        except (OSError, channel.ChannelError):
            pass  # the same as an end: the supervisor cannot be understood any more
        finally:
            writer.close()
            self.status = None
            for event in (self.ended, self._first, *self._output.values()):
                event.set()
            self._changed()

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == "status":
            self.status = status_codec.decode(message["status"])
            self._first.set()
            self._changed()
        elif message.get("event") == "output" and message.get("container") in self._output:
            self._output[message["container"]].set()
