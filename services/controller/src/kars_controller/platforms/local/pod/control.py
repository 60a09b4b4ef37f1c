"""The supervisor's control socket: status, watch, apply, stop, dial.

Only the supervisor's own user and root may connect. Every request is one JSON line with an `op` and gets
one line back; after `watch` the connection only receives: a status at each change, a notice at each
output. A caller that does not read is dropped, never waited for.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from kars_controller.platforms.base import PodStatus
from kars_controller.platforms.local import channel, status_codec
from kars_controller.platforms.local.pod.loop import Loop

_CHUNK = 1 << 16
_BACKLOG = 16
MAX_CONNECTIONS = 64

DialAnswer = Callable[[socket.socket | str], None]


class Handler(Protocol):
    """What the control socket asks of the pod."""

    def status(self) -> PodStatus:
        """Say how the pod is."""
        ...

    def apply(self, plain: object) -> None:
        """Take a new spec.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        ...

    def stop(self) -> None:
        """Begin to end."""
        ...

    def dial(self, port: int, answer: DialAnswer) -> None:
        """Connect to a port inside."""
        ...


class ControlServer:
    """Serves the socket until closed."""

    def __init__(self, loop: Loop, path: Path, handler: Handler) -> None:
        self._loop = loop
        self._handler = handler
        self._connections: set[_Connection] = set()
        self._pending_status = False
        self._pending_output: set[str] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        previous = os.umask(0o177)  # the socket is born 0600
        try:
            with channel.address(path) as short:
                self._listener.bind(short)
        finally:
            os.umask(previous)
        self._listener.listen(_BACKLOG)
        self._listener.settimeout(0)
        loop.on_readable(self._listener.fileno(), self._accept)

    def status_changed(self) -> None:
        """Tell watchers the status, once for all changes of this turn of the loop."""
        if not self._pending_status:
            self._pending_status = True
            self._loop.call_later(0, self._tell_status)

    def output_written(self, container: str) -> None:
        """Tell watchers that a log grew, once for all output of this turn."""
        if not self._pending_output:
            self._loop.call_later(0, self._tell_output)
        self._pending_output.add(container)

    def close(self) -> None:
        """Close the socket and all connections."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            accepted, _ = self._listener.accept()
            if (
                channel.peer_uid(accepted) not in {0, os.geteuid()}
                or len(self._connections) >= MAX_CONNECTIONS
            ):
                accepted.close()
                return
            accepted.settimeout(0)
            self._connections.add(_Connection(self._loop, accepted, self._handler, self._connections.discard))

    def _tell_status(self) -> None:
        self._pending_status = False
        self._tell({"event": "status", "status": status_codec.encode(self._handler.status())})

    def _tell_output(self) -> None:
        containers, self._pending_output = self._pending_output, set()
        for container in sorted(containers):
            self._tell({"event": "output", "container": container})

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in list(self._connections):
            if connection.watching:
                connection.send(message)


class _Connection:
    """One caller."""

    def __init__(
        self, loop: Loop, accepted: socket.socket, handler: Handler, closed: Callable[["_Connection"], None]
    ) -> None:
        self._loop = loop
        self._socket = accepted
        self._handler = handler
        self._closed = closed
        self._lines = channel.Lines()
        self.watching = False
        loop.on_readable(accepted.fileno(), self._readable)

    def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send all of a message now, or drop the caller."""
        line = channel.encode(message)
        try:
            sent = (
                socket.send_fds(self._socket, [line], list(descriptors))
                if descriptors
                else self._socket.send(line)
            )
        except OSError:
            sent = -1
        if sent != len(line):
            self.close()

    def close(self) -> None:
        """Close. Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._closed(self)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for message in self._lines.feed(data):
                self._handle(message)
        except channel.ChannelError:
            self.close()

    def _handle(self, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "status":
                self.send({"status": status_codec.encode(self._handler.status())})
            case "watch":
                self.watching = True
                self.send({"event": "status", "status": status_codec.encode(self._handler.status())})
            case "apply":
                self._apply(message.get("spec"))
            case "stop":
                self.send({"ok": True})
                self._handler.stop()
            case "dial":
                self._dial(message.get("port"))
            case _:
                self.send({"error": "unknown operation"})

    def _apply(self, plain: object) -> None:
        try:
            self._handler.apply(plain)
        except (ValueError, KeyError, TypeError) as error:
            self.send({"error": f"not a spec: {error}"})
            return
        self.send({"ok": True})

    def _dial(self, port: object) -> None:
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
            self.send({"error": "not a port"})
            return
        self._handler.dial(port, self._dialled)

    def _dialled(self, answer: socket.socket | str) -> None:
        if isinstance(answer, str):
            self.send({"error": answer})
            return
        with answer:
            self.send({"ok": True}, (answer.fileno(),))
