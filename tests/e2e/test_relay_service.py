"""The local platform's relay: started with an identity of its own, started again, adopted, never orphaned."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 40


class Platform:
    """`kars dev` in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def kars(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KARS_")}
        return subprocess.run(
            [sys.executable, "-m", "kars_cli", *arguments],
            env={**environment, "KARS_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    @property
    def controller(self) -> int:
        return int(json.loads((self.home / "dev.json").read_text())["controller"]["pid"])

    def relay(self) -> dict[str, Any]:
        """Return the relay once it runs."""

        def running() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = json.loads((self.home / "services/relay/process.json").read_text())
            except OSError:
                return None
            return found if found["endpoint"] and alive(found["pid"]) else None

        found: dict[str, Any] = until(running)
        return found


def until(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    found = Platform(tmp_path / "home")
    assert found.kars("dev", "--detach").returncode == 0
    yield found
    found.kars("dev", "stop")


def test_the_relay_lives_through_kills_and_ends_with_the_platform(platform: Platform) -> None:
    first = platform.relay()
    (service,) = json.loads(platform.kars("dev", "status", "-o", "json").stdout)["services"]
    assert (service["name"], service["running"], service["pid"]) == ("relay", True, first["pid"])
    said = platform.kars("doctor")
    assert "relay" in said.stdout
    assert first["endpoint"] in said.stdout

    # Killed, it comes back where it was.
    os.kill(first["pid"], signal.SIGKILL)
    second = until(lambda: (x := platform.relay())["pid"] != first["pid"] and x)
    assert second["endpoint"] == first["endpoint"]

    # It does not need the controller, and the next controller does not start another one.
    os.kill(platform.controller, signal.SIGKILL)
    until(lambda: not alive(platform.controller))
    assert alive(second["pid"])
    assert platform.kars("dev", "--detach").returncode == 0
    assert platform.relay()["pid"] == second["pid"]
    until(lambda: "adopted" in (platform.home / "controller" / "controller.log").read_text())

    # Nobody is left behind, neither by an orderly stop nor after a kill.
    os.kill(platform.controller, signal.SIGKILL)
    until(lambda: not alive(platform.controller))
    stopped = platform.kars("dev", "stop")
    assert "relay stopped" in stopped.stdout
    assert not alive(second["pid"])
    assert platform.kars("dev", "--detach").returncode == 0
    third = platform.relay()
    platform.kars("dev", "stop")
    assert not alive(third["pid"])


def test_what_the_relay_is_given_is_for_its_eyes(platform: Platform) -> None:
    relay = platform.home / "services" / "relay"
    platform.relay()
    assert {path.stat().st_mode & 0o077 for path in (relay / "config").iterdir()} == {0}
    pid = json.loads((relay / "process.json").read_text())["pid"]
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    for file in (relay / "config").iterdir():
        content = file.read_bytes().strip()
        assert content not in environment
