"""The platform's state directory on this machine, and where its controller listens."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kars_common.errors import UnavailableError

HOME_VARIABLE = "KARS_HOME"


def state_dir() -> Path:
    """Return $KARS_HOME, or the default for this user."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    return Path("/var/lib/kars") if os.geteuid() == 0 else Path.home() / ".kars"


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """What dev.json says."""

    controller: str
    bootstrap: str
    dns_name: str
    trust_domain: str
    pid: int

    @property
    def running(self) -> bool:
        """Whether the process that wrote the file is still there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it runs, as somebody else
        return _is_controller(self.pid)


def endpoints(home: Path) -> Endpoints:
    """Read dev.json.

    Raises:
        UnavailableError: `platform_not_running`: no platform was ever started here, or the file is damaged.
    """
    path = home / "dev.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        controller = document["controller"]
        return Endpoints(
            controller=str(controller["endpoint"]),
            bootstrap=str(controller["bootstrapEndpoint"]),
            dns_name=str(controller["dnsName"]),
            trust_domain=str(document["trustDomain"]),
            pid=int(controller["pid"]),
        )
    except FileNotFoundError:
        raise UnavailableError("platform_not_running", f"no platform was started in {home}") from None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise UnavailableError("platform_not_running", f"{path} cannot be read") from exc


def egress_endpoint(home: Path) -> str:
    """Return where the egress service listens for operators, as it wrote it down at its start.

    Raises:
        UnavailableError: `egress_not_running`.
    """
    try:
        return f"127.0.0.1:{int((home / 'egress' / 'control.port').read_text(encoding='ascii'))}"
    except (OSError, ValueError):
        raise UnavailableError("egress_not_running", f"no egress service was started in {home}") from None


def _is_controller(pid: int) -> bool:
    """Guard against a process id that belongs to somebody else by now."""
    try:
        return b"kars_controller" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
