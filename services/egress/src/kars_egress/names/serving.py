"""A name server inside each sandbox's namespace, on 127.0.0.1:53."""

import asyncio
import logging
import socket

from kars_egress import namespaces
from kars_egress.names import answering
from kars_egress.policy.sandboxes import SandboxId

_LOG = logging.getLogger(__name__)
_PLACE = ("127.0.0.1", 53)
_MAX_AT_ONCE = 64
"""Questions that are answered before others have their turn."""


class NameServers:
    """One for each sandbox that has a namespace. Use from one event loop."""

    def __init__(self) -> None:
        self._open: dict[SandboxId, tuple[str, socket.socket]] = {}

    def place(self, sandbox: SandboxId, network_namespace: str) -> None:
        """Serve a sandbox where it is now; an empty namespace means nowhere. Idempotent.

        A namespace that cannot be entered leaves the sandbox without names, which is closed, and is logged.
        """
        known = self._open.get(sandbox)
        if known is not None and known[0] == network_namespace:
            return
        self.remove(sandbox)
        if not network_namespace:
            return
        try:
            listening = namespaces.inside(network_namespace, _listen)
        except OSError as error:
            _LOG.error("a sandbox has no names", extra={"sandbox": str(sandbox), "why": error.strerror})
            return
        self._open[sandbox] = (network_namespace, listening)
        asyncio.get_running_loop().add_reader(listening.fileno(), _answer_some, listening)

    def remove(self, sandbox: SandboxId) -> None:
        """Stop serving a sandbox. Idempotent."""
        _, listening = self._open.pop(sandbox, ("", None))
        if listening is not None:
            asyncio.get_running_loop().remove_reader(listening.fileno())
            listening.close()

    def close(self) -> None:
        """Stop serving everybody."""
        for sandbox in list(self._open):
            self.remove(sandbox)


def _listen() -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.bind(_PLACE)
    except OSError:
        listening.close()
        raise
    return listening


def _answer_some(listening: socket.socket) -> None:
    for _ in range(_MAX_AT_ONCE):
        try:
            query, peer = listening.recvfrom(answering.MAX_QUERY_BYTES + 1)
            reply = answering.answer(query)
            if reply is not None:
                listening.sendto(reply, peer)
        except OSError:
            return  # nothing waits, or the peer does not want it: a datagram may be lost
