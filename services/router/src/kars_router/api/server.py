"""One HTTP server for one door's listening socket."""

import contextlib
import socket
from collections.abc import Generator

import uvicorn

from kars_router.api.app import DoorApp
from kars_router.api.protocol import MAX_CONNECTIONS, DoorProtocol

_BACKLOG = 1024
_IDLE_S = 75


class DoorServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process has one composition root, and it decides."""

    def __init__(self, app: DoorApp, *, drain_s: float, request_timeout_s: float, open_files: int) -> None:
        """Prepare one.

        Args:
            app: what it serves.
            drain_s: how long calls in flight may take after `stop`.
            request_timeout_s: how long a request may take to arrive.
            open_files: what the process may open; at most half of it is for callers.
        """
        bounds = {
            "request_timeout_s": request_timeout_s,
            "max_connections": min(MAX_CONNECTIONS, open_files // 2),
        }
        protocol = type("Protocol", (DoorProtocol,), bounds)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="none",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=max(1, int(drain_s)),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield

    async def run_on(self, door: socket.socket) -> None:
        """Serve until `stop`; then let calls in flight end for the drain time."""
        await self.serve(sockets=[door])

    def stop(self) -> None:
        """Begin to end: accept nothing more, drain, close."""
        self.should_exit = True


def open_door(*, fd: int | None, address: str | None) -> socket.socket:
    """Return the door's listening socket: an inherited descriptor, or a fresh one on an address.

    Raises:
        OSError: the descriptor is no socket, or the address cannot be bound.
    """
    if fd is not None:
        door = socket.socket(fileno=fd)
        door.set_inheritable(False)
    else:
        host, _, port = (address or "").rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        door = socket.socket(family, socket.SOCK_STREAM)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host.strip("[]") or "127.0.0.1", int(port)))
        door.listen(_BACKLOG)
    door.settimeout(0)
    return door
