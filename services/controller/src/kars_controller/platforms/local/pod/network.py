"""The pod's network namespace as the supervisor uses it: the door, and connections made from inside.

Owns the holder process. If the holder dies the pod has no network any more; the owner is told and starts
over.
"""

import os
import socket
from collections import deque
from collections.abc import Callable

from kars_controller.platforms.base import AGENT_UID, DOOR_PORT
from kars_controller.platforms.local.isolation import container, door
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.pod.loop import Loop

_START_TIMEOUT_S = 5.0
MAX_WAITING_DIALS = 64

Dialled = Callable[[socket.socket | str], None]


class PodNetwork:
    """A running holder and what it handed out."""

    def __init__(self, loop: Loop, *, rootless: bool, on_lost: Callable[[], None]) -> None:
        """Start the holder and wait (milliseconds) for the door.

        Raises:
            IsolationError: `network_namespace_unavailable`.
        """
        self._loop = loop
        self._on_lost = on_lost
        self._waiting: deque[Dialled] = deque()
        self._closed = False
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._channel.close()
            _hold(theirs, rootless=rootless)
        theirs.close()
        self._channel.settimeout(_START_TIMEOUT_S)
        loop.on_exit(self._pid, self._holder_ended)
        try:
            network = door.receive_network(self._channel)
        except (OSError, IsolationError):
            self.close()
            raise
        self._channel.settimeout(0)
        loop.on_readable(self._channel.fileno(), self._answered)
        self._network = network

    @property
    def door(self) -> int:
        """The listening descriptor to hand to the router."""
        return self._network.listener.fileno()

    @property
    def namespaces(self) -> container.Network:
        """What the agent joins."""
        return container.Network(net_fd=self._network.net_fd, user_fd=self._network.user_fd)

    def dial(self, port: int, dialled: Dialled) -> None:
        """Connect to a port inside; calls back with a non-blocking socket, or with why there is none."""
        if self._closed or len(self._waiting) >= MAX_WAITING_DIALS:
            dialled("the network holder is gone" if self._closed else "too many connections are being made")
            return
        try:
            self._channel.send(str(port).encode())  # the holder answers in order
        except OSError as error:
            dialled(f"the network holder does not listen: {error.strerror}")
            return
        self._waiting.append(dialled)

    def close(self) -> None:
        """End the holder and, with the last container, the namespace. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.forget(self._channel.fileno())
        self._channel.close()  # the holder reads its end and exits
        while self._waiting:
            self._waiting.popleft()("the pod is being stopped")

    def _answered(self) -> None:
        answer = door.receive_connection(self._channel)
        if self._waiting:
            self._waiting.popleft()(answer)

    def _holder_ended(self, _: int) -> None:
        lost = not self._closed
        self.close()
        if lost:
            self._on_lost()


def _hold(channel: socket.socket, *, rootless: bool) -> None:
    try:
        door.hold(channel, DOOR_PORT, AGENT_UID, own_user_namespace=rootless)
    except BaseException as error:  # noqa: BLE001  # the boundary: nothing may return into the supervisor's code
        channel.send(f"{type(error).__name__}: {error}".encode()[: door.MAX_MESSAGE])
    os._exit(0)
