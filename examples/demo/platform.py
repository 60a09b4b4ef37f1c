"""The platform as the demo uses it: what a person has, the `kars` command and the state folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

KARS = Path(sys.executable).with_name("kars")
_T = TypeVar("_T")


class DemoError(Exception):
    """The demo cannot go on; the text says what happened."""


def wait_for(what: str, look: Callable[[], _T | None], *, deadline_s: float) -> _T:
    """Return the first thing that `look` finds.

    Raises:
        DemoError: nothing was found in time.
    """
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise DemoError(f"waited {deadline_s:.0f} s for {what}")


class Platform:
    """One local platform with its own state folder."""

    def __init__(self, home: Path, python_path: Path | None = None) -> None:
        """Name a state folder; nothing is started.

        Args:
            home: the state folder.
            python_path: put on PYTHONPATH of every process of the platform.
        """
        self.home = home
        self._environment = {**os.environ, "KARS_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}
        if python_path is not None:
            self._environment["PYTHONPATH"] = str(python_path)

    def kars(self, *arguments: str, check: bool = True, timeout_s: float = 120) -> str:
        """Run the command and return what it printed.

        Raises:
            DemoError: it failed; with what it said.
        """
        result = self.run(*arguments, timeout_s=timeout_s)
        if check and result.returncode != 0:
            said = (result.stderr or result.stdout).strip()
            raise DemoError(f"`kars {' '.join(arguments)}` ended with {result.returncode}: {said}")
        return result.stdout

    def run(self, *arguments: str, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run the command and return all of its end."""
        return subprocess.run(
            [str(KARS), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self, out: IO[bytes], *arguments: str) -> "subprocess.Popen[bytes]":
        """Start the command and do not wait for it."""
        return subprocess.Popen(
            [str(KARS), *arguments], env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )

    def kars_items(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a listing command with `-o json` and return its items."""
        document = json.loads(self.kars(*arguments, "-o", "json"))
        items: list[dict[str, Any]] = document["items"] if isinstance(document, dict) else document
        return items

    def pod(self, name: str) -> Path:
        """The state folder of a sandbox in the namespace `default`."""
        return self.home / "pods" / "default" / name

    def agent_lines(self, name: str) -> list[str]:
        """What the agent of a sandbox has printed, also while the controller is away."""
        log = self.pod(name) / "logs" / "agent.log"
        return log.read_text(errors="replace").splitlines() if log.exists() else []

    def router_pid(self, name: str) -> int | None:
        """The router process of a sandbox: a descendant of its supervisor."""
        supervisors = {pid for pid, line in _processes() if str(self.pod(name)) in line and ".pod" in line}
        for pid, line in _processes():
            if "kars_router" in line and not supervisors.isdisjoint(_ancestors(pid)):
                return pid
        return None

    def controller_pid(self) -> int:
        """The controller's process."""
        return int(json.loads((self.home / "dev.json").read_text())["controller"]["pid"])

    def end(self) -> None:
        """Leave no process behind, whatever state things are in."""
        self.run("dev", "stop", timeout_s=60)
        for number in (signal.SIGTERM, signal.SIGKILL):
            ours = [pid for pid, line in _processes() if str(self.home) in line and pid != os.getpid()]
            for pid in ours:
                _signal(pid, number)
            if not ours:
                return
            try:
                wait_for("processes to end", partial(_none_alive, ours), deadline_s=10)
            except DemoError:
                continue


@contextmanager
def ended(platform: Platform) -> Iterator[Platform]:
    """End the platform at the end of the block."""
    try:
        yield platform
    finally:
        platform.end()


def _processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            found.append((int(folder.name), command.replace(b"\0", b" ").decode(errors="replace")))
    return found


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return
        yield pid


def _none_alive(pids: list[int]) -> bool:
    return not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
