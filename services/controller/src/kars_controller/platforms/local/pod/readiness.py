"""Asking the router, through the door and from inside the namespace, whether it is ready.

One question at a time; an unanswered one waits in the door's backlog until the router accepts, so a
start is noticed at once. Afterwards it is asked again at a slower pace.
"""

import contextlib
import socket
from collections.abc import Callable

from kars_controller.platforms.base import DOOR_PORT
from kars_controller.platforms.local.pod.loop import Loop, Timer
from kars_controller.platforms.local.pod.network import PodNetwork

_REQUEST = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
_ANSWER_TIMEOUT_S = 5.0
_AGAIN_UNREADY_S = 0.2
_AGAIN_READY_S = 5.0
_MAX_ANSWER = 4096


class Prober:
    """Asks until stopped; tells every answer."""

    def __init__(self, loop: Loop, network: PodNetwork, tell: Callable[[bool, str], None]) -> None:
        self._loop = loop
        self._network = network
        self._tell = tell
        self._timer: Timer | None = None
        self._connection: socket.socket | None = None
        self._answer = b""
        self._stopped = True

    def start(self) -> None:
        """Begin asking. Idempotent."""
        if self._stopped:
            self._stopped = False
            self._ask()

    def stop(self) -> None:
        """Stop asking. Idempotent."""
        self._stopped = True
        self._forget()

    def _ask(self) -> None:
        self._network.dial(DOOR_PORT, self._dialled)

    def _dialled(self, answer: socket.socket | str) -> None:
        if isinstance(answer, str):
            self._conclude(ready=False, message=answer)
            return
        if self._stopped:
            answer.close()
            return
        self._connection, self._answer = answer, b""
        self._timer = self._loop.call_later(_ANSWER_TIMEOUT_S, self._timed_out)
        self._loop.on_readable(answer.fileno(), self._readable)
        try:
            answer.send(_REQUEST)
        except OSError as error:
            self._conclude(ready=False, message=str(error.strerror))

    def _readable(self) -> None:
        if self._connection is None:
            return
        try:
            data = self._connection.recv(_MAX_ANSWER)
        except BlockingIOError:
            return
        except OSError as error:
            self._conclude(ready=False, message=str(error.strerror))
            return
        self._answer += data
        if not data or len(self._answer) >= _MAX_ANSWER:
            head, _, body = self._answer.partition(b"\r\n\r\n")
            ready = head.split(b" ", 2)[1:2] == [b"200"]
            self._conclude(ready=ready, message="" if ready else body.decode(errors="replace")[:300])

    def _timed_out(self) -> None:
        self._conclude(ready=False, message=f"no answer on /readyz in {_ANSWER_TIMEOUT_S:.0f} s")

    def _conclude(self, *, ready: bool, message: str) -> None:
        self._forget()
        if self._stopped:
            return
        self._timer = self._loop.call_later(_AGAIN_READY_S if ready else _AGAIN_UNREADY_S, self._ask)
        self._tell(ready, message)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connection is not None:
            self._loop.forget(self._connection.fileno())
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None
