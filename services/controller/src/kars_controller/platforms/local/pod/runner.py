"""One container over its whole life: started, watched, restarted with back-off, stopped.

Decides only about this container. When it may run is its owner's business (`start`, `hold`, `stop`).
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kars_controller.platforms.base import ContainerState, ContainerStatus
from kars_controller.platforms.local.isolation import container
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.pod.backoff import Backoff
from kars_controller.platforms.local.pod.logs import RotatingLog
from kars_controller.platforms.local.pod.loop import Loop, Timer
from kars_controller.platforms.local.pod.run import End, Run


@dataclass(frozen=True, kw_only=True)
class Notices:
    """Whom to tell what happens to a container."""

    changed: Callable[[], None]
    output: Callable[[], None]
    running: Callable[[], None] = lambda: None
    ended: Callable[[], None] = lambda: None


class Runner:
    """Runs what `launch` starts, again and again."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        launch: Callable[[], container.Started],
        log: RotatingLog,
        notices: Notices,
        *,
        oom_kills: Callable[[], int] = lambda: 0,
    ) -> None:
        self._loop = loop
        self._launch = launch
        self._log = log
        self._notices = notices
        self._oom_kills = oom_kills
        self._run: Run | None = None
        self._began = 0.0
        self._oom_before = 0
        self._timer: Timer | None = None
        self._backoff = Backoff()
        self._wanted = False
        self._after_stop: list[Callable[[], None]] = []
        self.restart_completed = False
        self.status = ContainerStatus(name=name, state=ContainerState.WAITING, reason="Pending")

    @property
    def alive(self) -> bool:
        """Whether an incarnation exists, in whatever stage."""
        return self._run is not None

    def hold(self, reason: str, message: str) -> None:
        """Say why the container does not run yet."""
        if self._run is None and self.status.state is ContainerState.WAITING:
            self._set(reason=reason, message=message)

    def start(self) -> None:
        """Want the container running; the first start is at once. Idempotent."""
        if not self._wanted:
            self._wanted = True
            self._backoff.reset()
            if self._run is None:
                self._start()

    def ready(self, *, ready: bool, reason: str = "", message: str = "") -> None:
        """Record what a readiness probe found."""
        if self.status.state is ContainerState.RUNNING:
            self._set(ready=ready, reason=reason, message=message)

    def stop(self, grace_s: float, then: Callable[[], None] = lambda: None) -> None:
        """Want it stopped: SIGTERM, after the grace SIGKILL of everything; calls back when it is down."""
        self._wanted = False
        self._cancel_timer()
        if self._run is None:
            self._set(state=ContainerState.WAITING, ready=False, reason="Suspended", message="")
            then()
            return
        self._after_stop.append(then)
        self._run.kill(signal.SIGTERM)
        self._timer = self._loop.call_later(grace_s, self.kill)

    def kill(self) -> None:
        """Kill everything in the container now."""
        if self._run is not None:
            self._run.kill(signal.SIGKILL)

    def _start(self) -> None:
        self._timer = None
        self._began = time.monotonic()
        self._oom_before = self._oom_kills()
        self._set(state=ContainerState.WAITING, ready=False, reason="ContainerCreating", message="")
        try:
            started = self._launch()
        except (OSError, IsolationError) as error:
            reason = error.reason if isinstance(error, IsolationError) else "isolation_failed"
            self._ended(End(exit_code=125, reason=reason, message=str(error), executed=False))
            return
        self._run = Run(
            self._loop,
            started,
            self._log,
            on_running=self._running,
            on_output=self._notices.output,
            on_end=self._ended,
        )

    def _running(self) -> None:
        self._set(state=ContainerState.RUNNING, reason="", message="", started_at=datetime.now(UTC))
        self._notices.running()

    def _ended(self, end: End) -> None:
        self._run = None
        self._cancel_timer()
        reason, message = self._explain(end)
        self._set(
            state=ContainerState.TERMINATED,
            ready=False,
            reason=reason,
            message=message,
            last_reason=reason,
            exit_code=end.exit_code,
            finished_at=datetime.now(UTC),
        )
        self._notices.ended()
        if self._after_stop:
            self._stopped()
        elif end.executed and end.exit_code == 0 and not self.restart_completed:
            return
        else:
            self._restart_later(reason, message)

    def _explain(self, end: End) -> tuple[str, str]:
        if end.reason == "exec_failed":
            return "StartError", end.message
        if not end.executed:
            return "IsolationFailed", f"{end.reason}: {end.message}"
        if end.reason:
            return end.reason, "stopped by PID 1: a limit was exceeded"
        if end.exit_code == 0:
            return "Completed", ""
        if end.exit_code == 128 + signal.SIGKILL and self._oom_kills() > self._oom_before:
            return "OOMKilled", "killed by the kernel: the memory limit was reached"
        return "Error", f"exit code {end.exit_code}"

    def _restart_later(self, reason: str, message: str) -> None:
        delay = self._backoff.after_run(time.monotonic() - self._began)
        if reason not in {"Completed", "IsolationFailed"}:
            message = f"{reason}: {message}; starting again in {delay:.0f} s"
            reason = "CrashLoopBackOff"
        self._set(
            state=ContainerState.WAITING,
            reason=reason,
            message=message,
            restart_count=self.status.restart_count + 1,
        )
        self._timer = self._loop.call_later(delay, self._start)

    def _stopped(self) -> None:
        callbacks, self._after_stop = self._after_stop, []
        for callback in callbacks:
            callback()
        if self._wanted and self._run is None and self._timer is None:
            self._start()  # wanted again while it was still ending

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]  # names are ours, checked in tests
        self._notices.changed()
