"""Starts, awaits and ends the processes of the benchmark, each on its core.

Knows no subject. A process that ends before it is ready is reported with the
last lines of its log.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.bench.router import environments

_POLL_S = 0.1


class NotReadyError(Exception):
    """A process ended or did not become ready in time."""


class Process:
    """One child process, pinned to a core, with its output in a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        core: int,
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it."""
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        before = os.sched_getaffinity(0)
        with log.open("wb") as output:
            os.sched_setaffinity(0, {core})  # the child inherits it, with all threads it will ever have
            self._child = subprocess.Popen(
                list(map(str, command)),
                cwd=environments.ROOT,
                env=dict(env) if env is not None else None,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        os.sched_setaffinity(0, before)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def await_ready(self, ready: Callable[[], object], deadline_s: float) -> None:
        """Call `ready` until it does not raise.

        Raises:
            NotReadyError: the process ended, or `ready` still raised at the deadline.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                ready()
            except Exception as exc:  # noqa: BLE001 - whatever is not ready yet says so in its own way
                reason = f"{type(exc).__name__}: {exc}"
            else:
                return
            if self._child.poll() is not None:
                raise NotReadyError(f"{self.name} ended with {self._child.returncode}: {self._tail()}")
            if time.monotonic() > deadline:
                raise NotReadyError(f"{self.name} not ready in {deadline_s:.0f} s ({reason}): {self._tail()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it: ask, wait five seconds, then kill. Returns when it is gone."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def first_line(self) -> str:
        """Return the first line of its output.

        Raises:
            LookupError: there is none yet.
        """
        line, newline, _ = self._log.read_text(errors="replace").partition("\n")
        if not newline:
            raise LookupError("no output yet")
        return line

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-1500:].strip() or "(no output)"


def python_module(module: str, *arguments: str) -> list[str | Path]:
    """Return the command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
