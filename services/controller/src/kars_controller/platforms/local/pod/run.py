"""One incarnation of a container, from fork to last byte of output.

Follows the protocol of `isolation.container`: the shim announces init and ends, init is adopted and let
go, the report pipe says whether execve was reached, and init's end is the container's end. Refuses to
know about restarts.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from kars_controller.platforms.local.isolation import container
from kars_controller.platforms.local.pod.logs import RotatingLog
from kars_controller.platforms.local.pod.loop import Loop

_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class End:
    """How an incarnation ended."""

    exit_code: int
    reason: str = ""
    """Set when it was not the payload's own doing: what PID 1 found, or why it was never executed."""
    message: str = ""
    executed: bool = True


class Run:
    """Watches one started container. Calls on_running at most once, on_end exactly once."""

    def __init__(
        self,
        loop: Loop,
        started: container.Started,
        log: RotatingLog,
        *,
        on_running: Callable[[], None],
        on_output: Callable[[], None],
        on_end: Callable[[End], None],
    ) -> None:
        self._loop = loop
        self._started = started
        self._log = log
        self._on_running = on_running
        self._on_output = on_output
        self._on_end = on_end
        self._init_pid: int | None = None
        self._adopted = False
        self._said: dict[str, object] = {}
        self._failure: dict[str, str] = {}
        loop.on_exit(started.shim_pid, self._shim_ended)
        loop.on_readable(started.report, self._read_report)
        loop.on_readable(started.output, self._read_output)

    def kill(self, number: signal.Signals) -> None:
        """Signal the container: SIGTERM is passed on by init, SIGKILL takes the whole pid namespace."""
        target = self._init_pid if self._adopted and self._init_pid else self._started.shim_pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)

    def _shim_ended(self, code: int) -> None:
        self._listen()
        if self._init_pid is None:
            self._finish(code)
            return
        # The kernel made us init's parent when the shim ended.
        self._adopted = True
        self._loop.on_exit(self._init_pid, self._finish)
        with contextlib.suppress(OSError):  # init died while building; its end is about to be told
            self._started.channel.send(container.GO)

    def _read_report(self) -> None:
        data = os.read(self._started.report, _CHUNK)
        if data:
            with contextlib.suppress(ValueError):
                self._failure = json.loads(data)
            return
        self._loop.forget(self._started.report)
        if not self._failure and self._adopted:
            self._on_running()

    def _read_output(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._started.output, _CHUNK)
            if data:
                self._log.write(data)
                self._on_output()
            else:
                self._loop.forget(self._started.output)

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError, ValueError):
            while message := self._started.channel.recv(container.MAX_MESSAGE):
                self._said |= json.loads(message)
        pid = self._said.get("init")
        self._init_pid = pid if isinstance(pid, int) else None

    def _finish(self, code: int) -> None:
        self._listen()
        self._drain()
        for descriptor in (self._started.report, self._started.output):
            self._loop.forget(descriptor)
            os.close(descriptor)
        self._started.channel.close()
        exited, reason = self._said.get("exited"), self._said.get("reason")
        exit_code = exited if isinstance(exited, int) else code if code >= 0 else 128 - code
        if self._failure or not self._adopted:
            message = self._failure.get("message", "the container could not be started")
            cause = self._failure.get("reason", "isolation_failed")
            self._on_end(End(exit_code=exit_code, reason=cause, message=message, executed=False))
        else:
            self._on_end(End(exit_code=exit_code, reason=str(reason or "")))

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError, ValueError):
            if report := os.read(self._started.report, _CHUNK):
                self._failure = json.loads(report)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._started.output, _CHUNK):
                self._log.write(data)
        self._on_output()
