"""The pod's network namespace, kept by a small process that can hold it and connect inside it.

The namespace is empty but for a loop-back. Its one listening socket, the door, is made here and handed
out: a listening socket stays in the namespace where it was made, whoever accepts on it. There is no
route, no resolver and no other way out. `hold` runs in a fork; `Door` is the other end.
"""

import os
import signal
import socket
from dataclasses import dataclass

from kars_controller.platforms.local.isolation import namespaces, privileges
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.isolation.seccomp import compiling, installing

_BACKLOG = 512
_CONNECT_TIMEOUT_S = 2.0
_READY = b"ready"
_CONNECTED = b"connected"
MAX_MESSAGE = 512


@dataclass(frozen=True, kw_only=True)
class Network:
    """Descriptors of a pod's namespaces and of its door."""

    user_fd: int | None
    net_fd: int
    listener: socket.socket


def hold(channel: socket.socket, port: int, uid: int, *, own_user_namespace: bool) -> None:
    """Make the namespace and the door, send their descriptors, then dial on request until the end.

    Runs in a fork that exits afterwards.

    Args:
        channel: to the supervisor.
        port: of the door.
        uid: to become.
        own_user_namespace: make a user namespace first (rootless).

    Raises:
        OSError: the host refuses; the message says what.
        IsolationError: seccomp could not be installed.
    """
    privileges.die_with_parent(signal.SIGKILL)
    if own_user_namespace:
        namespaces.enter_user_namespace(uid)
    namespaces.unshare(namespaces.NEWNET)
    namespaces.bring_up_loopback()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(_BACKLOG)
    net = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    descriptors = [listener.fileno(), net]
    if own_user_namespace:
        descriptors.append(os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC))
    socket.send_fds(channel, [_READY], descriptors)
    listener.close()
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    privileges.drop(uid, own_user_namespace=own_user_namespace)
    privileges.hide_memory()
    privileges.die_with_parent(signal.SIGKILL)  # again: changing the uid forgot it
    installing.install(compiling.compile_profile(compiling.STRICT))
    _serve(channel)


def _serve(channel: socket.socket) -> None:
    while request := channel.recv(MAX_MESSAGE):
        try:
            # No getaddrinfo here: it would import a codec from files that this uid can no longer read.
            with socket.socket() as connected:
                connected.settimeout(_CONNECT_TIMEOUT_S)
                connected.connect(("127.0.0.1", int(request)))
                connected.settimeout(0)
                socket.send_fds(channel, [_CONNECTED], [connected.fileno()])
        except OSError as error:
            channel.send(os.strerror(error.errno or 0).encode())


def receive_network(channel: socket.socket) -> Network:
    """Take what `hold` sends first.

    Raises:
        IsolationError: `network_namespace_unavailable`, with what the holder said or that it died.
    """
    message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 3)
    if message != _READY:
        said = message.decode(errors="replace") or "the holder ended"
        raise IsolationError("network_namespace_unavailable", said)
    listener, net, *user = descriptors
    return Network(listener=socket.socket(fileno=listener), net_fd=net, user_fd=user[0] if user else None)


def receive_connection(channel: socket.socket) -> socket.socket | str:
    """Take the answer to one dial request: a connected socket, or why there is none."""
    message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
    if message == _CONNECTED and descriptors:
        connected = socket.socket(fileno=descriptors[0])
        connected.settimeout(0)
        return connected
    return message.decode(errors="replace") or "the network holder ended"
