"""The relay as a real process on real sockets; killed and started again on the same state."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 20.0


@dataclass(kw_only=True)
class RelayProcess:
    """One `python -m kars_relay`."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> Self:
        """Start and wait until it listens; keeps its ports over restarts."""
        ports_file = self.directory / "ports.json"
        ports_file.unlink(missing_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "KARS_RELAY_STATE_DIR": str(self.directory / "state"),
            "KARS_RELAY_SVID_DIR": str(self.directory / "identity"),
            "KARS_RELAY_POLICY_KEYS_FILE": str(self.directory / "policy-keys.json"),
            "KARS_RELAY_PORTS_FILE": str(ports_file),
            "KARS_RELAY_LOG_LEVEL": "WARNING",
            **{f"KARS_RELAY_{name}": value for name, value in self.settings.items()},
        }
        if "main" in self.ports:
            environment["KARS_RELAY_ADDRESS"] = f"127.0.0.1:{self.ports['main']}"
        log = (self.directory / "relay.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kars_relay"], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ports_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.directory / "relay.log").read_text()[-4000:]
                self.kill()
                raise RuntimeError(f"the relay did not start: {text}")
            time.sleep(0.02)
        self.ports = json.loads(ports_file.read_bytes())
        return self

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill -9 and reap."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=30)
        self._process = None
        return code

    def wait_dead(self, timeout_s: float = 10.0) -> int:
        """Wait until it ends by itself; returns the exit code."""
        assert self._process is not None
        return self._process.wait(timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
