"""The services beside the controller on this machine, as their own files tell: no controller is needed."""

import contextlib
import json
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STOP_S = 20.0


@dataclass(frozen=True, kw_only=True)
class LocalService:
    """One service, running or not."""

    name: str
    endpoint: str
    pid: int
    started_ticks: int
    log: Path

    @property
    def running(self) -> bool:
        """Whether the process that wrote the file is still there."""
        return _start_ticks(self.pid) == self.started_ticks != 0

    def plain(self) -> dict[str, Any]:
        """Return it for programs."""
        running = self.running
        return {
            "name": self.name,
            "running": running,
            "endpoint": self.endpoint,
            "pid": self.pid if running else 0,
            "log": str(self.log),
        }

    def stop(self) -> bool:
        """End it; False when it did not end in time."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            # By descriptor, and looked at again: the number may be somebody else's by now.
            if not self.running:
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            return bool(select.select([descriptor], [], [], _STOP_S)[0])
        finally:
            os.close(descriptor)


def found(home: Path) -> list[LocalService]:
    """Return the services that were ever started here."""
    services = []
    for path in sorted((home / "services").glob("*/process.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            plain = json.loads(path.read_bytes())
            services.append(
                LocalService(
                    name=str(plain["service"]),
                    endpoint=str(plain["endpoint"]),
                    pid=int(plain["pid"]),
                    started_ticks=int(plain["startedTicks"]),
                    log=path.parent / "service.log",
                )
            )
    return services


def _start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        state, *rest = stat.rpartition(")")[2].split()
        return 0 if state in {"Z", "X"} else int(rest[18])
    except (OSError, ValueError, IndexError):
        return 0
