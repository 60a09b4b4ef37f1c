"""A whole stand: controller, inside and gateway, started and killed from synchronous code."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kars.a2a.v1 import policy_pb2
from kars_common.svid import Svid
from kars_common.testing import MemoryAuthority

from kars_a2a_gateway_testkit.controller import GatewayController
from kars_a2a_gateway_testkit.policies import exposure

AGENT = "team/writer"


class Stand:
    """One gateway with one agent behind it."""

    def __init__(
        self,
        directory: Path,
        *,
        inside_module: str = "kars_a2a_gateway_testkit.inside",
        **inside: Any,  # noqa: ANN401  # JSON
    ) -> None:
        self.directory = directory
        self.authority = MemoryAuthority()
        self.controller = GatewayController(self.authority)
        self._inside_settings = {"namespace": "team", "name": "writer", **inside}
        self._inside_module = inside_module
        self._gateway: subprocess.Popen[bytes] | None = None
        self._inside: subprocess.Popen[bytes] | None = None
        self.inside_ports: dict[str, int] = {}
        self.ports: dict[str, int] = {}
        self.settings: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where the HTTP bindings of the agent are."""
        return f"{self.scheme}://127.0.0.1:{self.ports['http']}/agents/{AGENT}"

    @property
    def root(self) -> str:
        """Where the gateway is."""
        return f"{self.scheme}://127.0.0.1:{self.ports['http']}"

    @property
    def grpc_target(self) -> str:
        """Where the gRPC binding is."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "https" if "TLS_CERT_FILE" in self.settings else "http"

    @property
    def door(self) -> str:
        """Where the router's door is."""
        return f"127.0.0.1:{self.inside_ports['door']}"

    @property
    def state(self) -> Path:
        """The gateway's state directory."""
        return self.directory / "gateway"

    @property
    def gateway_pid(self) -> int:
        """The gateway's process."""
        if self._gateway is None:
            raise RuntimeError("the gateway is not running")
        return self._gateway.pid

    def start(self, policy: policy_pb2.GatewayPolicy | None = None, **settings: str) -> None:
        """Start everything, with a policy in force; None for the open one."""
        self.controller.start()
        self.start_inside()
        self.start_gateway(**settings)
        answer = self.controller.publish(policy if policy is not None else self.open_policy())
        if answer is None or not answer.HasField("ack"):
            raise RuntimeError(f"the gateway refuses the policy: {answer}")

    def open_policy(self, **fields: Any) -> policy_pb2.GatewayPolicy:  # noqa: ANN401  # proto fields
        """Return a policy that opens the agent to everybody."""
        root = policy_pb2.AgentRef(namespace="team", name="writer")
        fields.setdefault("limits", generous())
        return policy_pb2.GatewayPolicy(agents=[exposure(self.door, **fields)], root_agent=root)

    def stop(self) -> None:
        """Stop everything."""
        for process in (self._gateway, self._inside):
            if process is not None and process.poll() is None:
                process.terminate()
        for process in (self._gateway, self._inside):
            if process is not None:
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(5)
        self.controller.stop()

    def start_inside(self) -> None:
        """Start agent and door."""
        directory = self.directory / "inside"
        directory.mkdir(parents=True, exist_ok=True)
        write_svid(directory / "svid", self.authority.sandbox("team", "writer"))
        (directory / "inside.json").write_text(json.dumps(self._inside_settings))
        self._inside, self.inside_ports = _start(self._inside_module, directory, [str(directory)], {})

    def kill_inside(self) -> None:
        """Kill agent and door."""
        if self._inside is not None:
            self._inside.kill()
            self._inside.wait(5)

    def start_gateway(self, **settings: str) -> None:
        """Start the gateway; settings are remembered for the next start, ports too."""
        self.settings |= settings
        self.state.mkdir(parents=True, exist_ok=True)
        write_svid(self.directory / "gateway-svid", self.authority.service("a2a-gateway"))
        keys = self.directory / "policy-keys.json"
        keys.write_bytes(self.controller.keys_file)
        if not self.ports:
            self.ports = {"http": free_port(), "grpc": free_port()}
        environment = {
            "STATE_DIR": str(self.state),
            "PUBLIC_URL": self.root,
            "PUBLIC_GRPC_TARGET": f"127.0.0.1:{self.ports['grpc']}",
            "HTTP_ADDRESS": f"127.0.0.1:{self.ports['http']}",
            "GRPC_ADDRESS": f"127.0.0.1:{self.ports['grpc']}",
            "POLICY_KEYS_FILE": str(keys),
            "CONTROLLER_ENDPOINT": self.controller.endpoint,
            "SVID_DIR": str(self.directory / "gateway-svid"),
            "ALLOW_LOOPBACK_TARGETS": "true",
            "PUSH_FIRST_RETRY_S": "0.1",
            "DRAIN_S": "1",
            "REQUEST_TIMEOUT_S": "3",
            **({} if "TLS_CERT_FILE" in self.settings else {"PLAINTEXT": "true"}),
            **self.settings,
        }
        prefixed = {f"KARS_A2A_GATEWAY_{name}": value for name, value in environment.items()}
        self._gateway, ports = _start("kars_a2a_gateway", self.state, [], prefixed)
        self.ports |= ports

    def kill_gateway(self) -> None:
        """Kill -9 the gateway."""
        if self._gateway is not None:
            self._gateway.send_signal(signal.SIGKILL)
            self._gateway.wait(5)

    def stop_gateway(self) -> int:
        """End the gateway in good order; returns its exit code."""
        if self._gateway is None:
            return 0
        self._gateway.terminate()
        return self._gateway.wait(15)

    def audit(self) -> Iterator[dict[str, Any]]:
        """Yield the records of the gateway's audit log."""
        for segment in sorted((self.state / "audit").glob("*.jsonl")):
            for line in segment.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def gateway_log(self) -> str:
        """Return what the gateway printed."""
        return (self.state / "output.txt").read_text(encoding="utf-8", errors="replace")


def generous() -> policy_pb2.ExposureLimits:
    """Return limits that a busy test does not meet."""
    return policy_pb2.ExposureLimits(
        caller_requests_per_minute=6_000_000,
        caller_burst=1_000_000,
        agent_requests_per_minute=6_000_000,
        max_streams=8192,
        max_open_tasks=100_000,
    )


def write_svid(directory: Path, svid: Svid) -> None:
    """Write an identity as files."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = {
        "tls.crt": svid.certificate_chain_pem,
        "tls.key": svid.private_key_pem,
        "ca.crt": svid.trust_bundle_pem,
    }
    for name, content in parts.items():
        (directory / name).touch(mode=0o600)
        (directory / name).write_bytes(content)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(0.01)


def _start(
    module: str, directory: Path, arguments: list[str], environment: dict[str, str]
) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    ports = directory / "ports.json"
    ports.unlink(missing_ok=True)
    with (directory / "output.txt").open("ab") as output:
        process = subprocess.Popen(  # our own modules
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )

    def announced() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{module} ended: {(directory / 'output.txt').read_text()[-3000:]}")
        return ports.exists()

    try:
        wait_until(announced, f"{module} to start", 20)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return process, json.loads(ports.read_text())


__all__ = ["AGENT", "Stand", "free_port", "generous", "wait_until", "write_svid"]
