"""Drives pod supervisors without a controller; standard library only, so that any user can run it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kars_controller.platforms.base import ROUTER_UID, AgentPlan, PodStatus, ReadOnlyMount, SandboxKey
from kars_controller.platforms.local import channel, layout, status_codec
from kars_controller.platforms.local import spec as specs
from kars_controller.platforms.local.isolation import quota

HERE = Path(__file__).parent
FAULTS = HERE.parents[1] / "faults"
PYTHON = "/usr/bin/python3"
DEADLINE_S = 20.0


def _environment(fault: str) -> Mapping[str, str]:
    """The supervisor's, with one thing taken from the host that it sees; see tests/faults."""
    if not fault:
        return os.environ
    path = os.pathsep.join(filter(None, (str(FAULTS / fault), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


class Pod:
    """One supervised pod in a directory of its own."""

    def __init__(
        self, pods: Path, name: str, agent: AgentPlan, *, router: str = "stand_in_router.py", fault: str = ""
    ) -> None:
        key = SandboxKey("redteam", name)
        self.directory = layout.PodDirectory.of(pods, key)
        for path in (self.directory.path, self.directory.router_state):
            path.mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(self.directory.router_state, ROUTER_UID, ROUTER_UID)
        spec = specs.PodSpec(
            key=key,
            uid=name,
            digest="1",
            agent=agent,
            router=specs.RouterSpec(
                argv=(PYTHON, "/opt/stand_in/router.py"),
                env={"STANDS_FOR": name},
                mounts=(ReadOnlyMount(source=HERE / router, target="/opt/stand_in/router.py"),),
                files_digest="",
            ),
            suspended=False,
            termination_grace_s=1.0,
        )
        self.spec = spec
        self.directory.spec.write_text(json.dumps(specs.encode(spec)), encoding="utf-8")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kars_controller.platforms.local.pod", str(self.directory.path)],
            stdout=subprocess.PIPE,
            env=_environment(fault),
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == b"ready\n", f"supervisor said {said!r}"

    def request(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """Make one exchange on the control socket."""
        with self._connection() as connection:
            connection.sendall(channel.encode(dict(message)))
            data, descriptors, _, _ = socket.recv_fds(connection, channel.MAX_LINE, 1)
            return json.loads(data), descriptors

    def wait(self, reached: Callable[[PodStatus], bool]) -> PodStatus:
        """Return the first pushed status for which reached holds."""
        with self._connection() as connection:
            connection.settimeout(DEADLINE_S)
            connection.sendall(channel.encode({"op": "watch"}))
            lines = channel.Lines()
            status = None
            try:
                while data := connection.recv(1 << 16):
                    for message in lines.feed(data):
                        if message["event"] == "status":
                            status = status_codec.decode(message["status"])
                            if reached(status):
                                return status
            except TimeoutError:
                pass
        raise AssertionError(f"not reached in {DEADLINE_S} s: {status}; logs: {self.log('agent')[-800:]}")

    def wait_for_output(self, marker: str, container: str = "agent") -> str:
        """Return the log once it holds marker (supervisors push a notice at each output)."""
        deadline = time.monotonic() + DEADLINE_S
        with self._connection() as connection:
            connection.settimeout(DEADLINE_S)
            connection.sendall(channel.encode({"op": "watch"}))
            with contextlib.suppress(TimeoutError):
                while marker not in self.log(container) and time.monotonic() < deadline:
                    connection.recv(1 << 16)
        log = self.log(container)
        assert marker in log, f"no {marker!r} in {log[-800:]!r}, status {self.status()}"
        return log

    def status(self) -> PodStatus:
        return status_codec.decode(self.request({"op": "status"})[0]["status"])

    def dial(self, port: int) -> bytes:
        """Connect to a port inside and return what it says first."""
        answer, descriptors = self.request({"op": "dial", "port": port})
        if not descriptors:
            return str(answer["error"]).encode()
        with socket.socket(fileno=descriptors[0]) as connected:
            connected.settimeout(DEADLINE_S)
            return connected.recv(100)

    def log(self, container: str) -> str:
        path = self.directory.log(container)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def remove(self) -> None:
        """Stop the pod and remove its directory."""
        self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            quota.unmount(self.directory.workspace, lazily=True)
            shutil.rmtree(self.directory.path)

    def _connection(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        with channel.address(self.directory.control) as short:
            connection.connect(short)
        return connection
