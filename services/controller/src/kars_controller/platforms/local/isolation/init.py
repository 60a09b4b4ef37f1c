"""PID 1 of a container: reaps, passes on the request to stop, keeps accounts where the kernel does not.

It holds no privilege when `run` begins. When it ends, the kernel kills everything else in the pid namespace.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import time
from typing import NoReturn

from kars_controller.platforms.local.isolation import watchdog

MEMORY_EXCEEDED = "OOMKilled"
WORKSPACE_EXCEEDED = "WorkspaceFull"
_KILLED = 137
_MAX_CLOSED_LOOKS = 4


def run(payload: int, channel: socket.socket, limits: watchdog.Limits) -> NoReturn:
    """Serve until the payload ends or the supervisor's channel closes; then report and exit."""
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: _signal_group(payload, signal.SIGTERM))
    poller = select.poll()
    poller.register(wake_read, select.POLLIN)
    poller.register(channel.fileno(), select.POLLIN | select.POLLHUP)
    guard = _Guard(limits)
    while True:
        status = _reap(payload)
        if status is not None:
            _finish(channel, os.waitstatus_to_exitcode(status), "")
        excess = guard.check()
        if excess:
            _finish(channel, _KILLED, excess)
        for descriptor, events in poller.poll(guard.pause_ms()):
            if descriptor == wake_read:
                os.read(wake_read, 4096)
            elif events & (select.POLLHUP | select.POLLERR) or not channel.recv(64):
                os._exit(_KILLED)  # the supervisor is gone


class _Guard:
    """Decides when to look and whether what it sees is too much."""

    def __init__(self, limits: watchdog.Limits) -> None:
        self._limits = limits
        self._next_workspace = 0.0
        self._closed_looks = 0

    def pause_ms(self) -> int | None:
        if self._limits.memory_bytes is not None:
            return int(watchdog.MEMORY_INTERVAL_S * 1000)
        if self._limits.workspace_bytes is not None:
            return int(watchdog.WORKSPACE_INTERVAL_S * 1000)
        return None

    def check(self) -> str:
        memory = self._limits.memory_bytes
        if memory is not None and watchdog.exceeds_memory(memory):
            return MEMORY_EXCEEDED
        space = self._limits.workspace_bytes
        if space is not None and time.monotonic() >= self._next_workspace:
            began = time.monotonic()
            used = self._workspace_bytes()
            spent = time.monotonic() - began
            # A large tree takes long to walk: never spend more than a tenth of the time on it.
            self._next_workspace = began + max(watchdog.WORKSPACE_INTERVAL_S, 10 * spent)
            if used > space:
                return WORKSPACE_EXCEEDED
        return ""

    def _workspace_bytes(self) -> float:
        try:
            used: float = watchdog.workspace_bytes(self._limits.workspace)
        except PermissionError:
            # A process is closed to us for a moment while it drops its privileges; if it stays so, it hides.
            self._closed_looks += 1
            return 0 if self._closed_looks < _MAX_CLOSED_LOOKS else math.inf
        self._closed_looks = 0
        return used


def _reap(payload: int) -> int | None:
    """Reap all that ended; return the payload's status if it did."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == payload:
            return status


def _signal_group(payload: int, number: int) -> None:
    for send in (os.killpg, os.kill):  # it may not have made its group yet
        try:
            send(payload, number)
        except ProcessLookupError:
            continue
        return


def _finish(channel: socket.socket, code: int, reason: str) -> NoReturn:
    code = code if code >= 0 else 128 - code
    with contextlib.suppress(OSError):  # nobody listens any more; the exit code says it too
        channel.send(json.dumps({"exited": code, "reason": reason}).encode())
    os._exit(code)
