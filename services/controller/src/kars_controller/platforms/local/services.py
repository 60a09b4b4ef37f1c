"""A service of the platform as a process of this machine: started, watched, started again, adopted, stopped.

The process outlives a controller that is killed, and the next one adopts it: what it keeps for others (mail,
for one) must not depend on our life. A controller that stops in order takes it along. Its identity it gets as
a router gets its own: a one-time token in a 0600 file, renewed while it stays away.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kars_common import files
from kars_common.tasks import Backoff

from kars_controller.platforms.local.processes import Handle

_LOG = logging.getLogger(__name__)
_START_S = 30.0
_STOP_S = 15.0
_POLL_S = 0.05
_REJOIN_S = 60.0
_PASSED_ON = ("PATH", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
PROCESS_FILE = "process.json"
LOG_FILE = "service.log"
_TOKEN_FILE = "join-token"  # noqa: S105 - a file name


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """What runs: `python -m <module>` with these settings, and these files beside it."""

    name: str
    module: str
    prefix: str
    """Of its settings, such as `KARS_RELAY_`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Settings that name files: setting to content."""

    @property
    def digest(self) -> str:
        """Changes when a running process has to be replaced."""
        plain = [sorted(self.settings.items())]
        plain.append(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in self.files.items()))
        return hashlib.sha256(json.dumps([self.module, plain]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ServiceProcess:
    """A process as `process.json` keeps it."""

    pid: int
    started_ticks: int
    digest: str
    endpoint: str

    @property
    def alive(self) -> bool:
        """Whether it still runs, and the number is not somebody else's by now."""
        return start_ticks(self.pid) == self.started_ticks != 0


class LocalService:
    """Keeps one service running."""

    def __init__(
        self,
        directory: Path,
        plan: ServicePlan,
        *,
        join_token: Callable[[], str],
        connected: Callable[[], bool],
        on_change: Callable[[], None],
        backoff: Backoff | None = None,
    ) -> None:
        """Describe it; nothing is started yet.

        Args:
            directory: the service's own state.
            plan: what runs.
            join_token: returns a fresh one-time token for its identity.
            connected: tells whether it has found the controller.
            on_change: called when the endpoint changed.
            backoff: waits between starts.
        """
        self._directory = directory
        self._plan = plan
        self._join_token = join_token
        self._connected = connected
        self._on_change = on_change
        self._backoff = backoff or Backoff(first_s=0.5)
        self.endpoint = ""

    async def run(self) -> None:
        """Keep it running until cancelled, then stop it."""
        process: ServiceProcess | None = None
        try:
            while True:
                process = await self._adopt() or await self._start()
                if process is not None:
                    self._set_endpoint(process.endpoint)
                    await self._watch(process)
                    _LOG.error("service ended", extra={"name_of_service": self._plan.name})
                    self._set_endpoint("")
                await self._backoff.wait()
        finally:
            with contextlib.suppress(OSError):
                await asyncio.shield(self._stop(read(self._directory)))

    async def _adopt(self) -> ServiceProcess | None:
        """Return a process that an earlier controller left behind, if it is as planned."""
        process = read(self._directory)
        if process is None or not process.alive:
            return None
        if process.digest != self._plan.digest:
            await self._stop(process)
            return None
        self._write_token()
        _LOG.info("service adopted", extra={"name_of_service": self._plan.name, "pid": process.pid})
        return process

    async def _start(self) -> ServiceProcess | None:
        """Start it and wait until it listens; None when it does not."""
        config, ports = self._directory / "config", self._directory / "ports.json"
        for name, content in self._plan.files.items():
            files.replace(config / name.lower(), content)
        self._write_token()
        ports.unlink(missing_ok=True)
        pid = os.posix_spawn(  # noqa: ASYNC221  # returns once the child executes
            sys.executable,
            [sys.executable, "-m", self._plan.module],
            self._environment(ports),
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self._log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        process = ServiceProcess(
            pid=pid, started_ticks=start_ticks(pid), digest=self._plan.digest, endpoint=""
        )
        self._write(process)
        port = await self._await_port(process, ports)
        if port == 0:
            _LOG.error(
                "service did not start", extra={"name_of_service": self._plan.name, "log": str(self._log)}
            )
            await self._stop(process)
            return None
        found = ServiceProcess(**{**vars(process), "endpoint": f"127.0.0.1:{port}"})
        self._write(found)
        _LOG.info("service started", extra={"name_of_service": self._plan.name, "pid": pid, "port": port})
        return found

    async def _await_port(self, process: ServiceProcess, ports: Path) -> int:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                while process.alive:
                    port = _main_port(ports)
                    if port:
                        return port
                    # Two events in one: it writes a file, or it ends.
                    await asyncio.sleep(_POLL_S)
        return 0

    async def _watch(self, process: ServiceProcess) -> None:
        """Wait until it ends; while it has not found us, give it another way to prove itself."""
        with Handle(process.pid) as handle:
            ended = asyncio.create_task(handle.ended(), name=f"service {self._plan.name}")
            try:
                while not (await asyncio.wait({ended}, timeout=_REJOIN_S))[0]:
                    if self._connected():
                        self._backoff.reset()
                    else:
                        self._write_token()
            finally:
                ended.cancel()
                await asyncio.gather(ended, return_exceptions=True)
        _collect(process.pid)

    async def _stop(self, process: ServiceProcess | None) -> None:
        if process is None or not process.alive:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        with Handle(process.pid) as handle:
            try:
                async with asyncio.timeout(_STOP_S):
                    await handle.ended()
            except TimeoutError:
                handle.kill()
                await handle.ended()
        _collect(process.pid)
        (self._directory / PROCESS_FILE).unlink(missing_ok=True)

    def _environment(self, ports: Path) -> dict[str, str]:
        config, prefix = self._directory / "config", self._plan.prefix
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {f"{prefix}{name}": value for name, value in self._plan.settings.items()}
        environment |= {f"{prefix}{name}": str(config / name.lower()) for name in self._plan.files}
        environment[f"{prefix}STATE_DIR"] = str(self._directory)
        environment[f"{prefix}PORTS_FILE"] = str(ports)
        environment[f"{prefix}JOIN_TOKEN_FILE"] = str(config / _TOKEN_FILE)
        environment[f"{prefix}ADDRESS"] = f"127.0.0.1:{self._port()}"
        return environment

    def _port(self) -> int:
        """Return the port of the last run while it is free: those who know it find it again."""
        last = read(self._directory)
        port = int(last.endpoint.rpartition(":")[2]) if last is not None and last.endpoint else 0
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return 0
        return port

    def _write_token(self) -> None:
        files.replace(self._directory / "config" / _TOKEN_FILE, self._join_token().encode())

    def _write(self, process: ServiceProcess) -> None:
        plain = {
            "service": self._plan.name,
            "module": self._plan.module,
            "pid": process.pid,
            "startedTicks": process.started_ticks,
            "digest": process.digest,
            "endpoint": process.endpoint,
        }
        files.replace(self._directory / PROCESS_FILE, json.dumps(plain).encode() + b"\n")

    def _set_endpoint(self, endpoint: str) -> None:
        if endpoint != self.endpoint:
            self.endpoint = endpoint
            self._on_change()

    @property
    def _log(self) -> Path:
        return self._directory / LOG_FILE


def read(directory: Path) -> ServiceProcess | None:
    """Return the last process of a service; None when there is none, or the file is damaged."""
    try:
        plain: dict[str, Any] = json.loads((directory / PROCESS_FILE).read_bytes())
        return ServiceProcess(
            pid=int(plain["pid"]),
            started_ticks=int(plain["startedTicks"]),
            digest=str(plain["digest"]),
            endpoint=str(plain["endpoint"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _main_port(path: Path) -> int:
    """Return the port in a ports file; 0 while it is not there, or not whole."""
    try:
        return int(json.loads(path.read_bytes())["main"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        state, *rest = stat.rpartition(")")[2].split()
        return 0 if state in ("Z", "X") else int(rest[18])
    except (OSError, ValueError, IndexError):
        return 0


def _collect(pid: int) -> None:
    """Take the status of a process that ended, if it was our child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
