"""The router as a real process on a real socket."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.policy.v1 import policy_pb2
from kars_common.audit import verify_directory

from kars_router_testkit.policies import bundle as make_bundle
from kars_router_testkit.policies import sign_into

CANARY_KEY = "sk-canary-0123456789abcdef0123456789abcdef"
START_TIMEOUT_S = 20.0


@dataclass(kw_only=True)
class HttpAnswer:
    """One response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - a JSON value
        """Return the body as JSON."""
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        """Return the error code."""
        return str(self.json["error"]["code"])

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events of a stream, without `[DONE]`."""
        data = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [orjson.loads(item) for item in data if item != b"[DONE]"]

    @property
    def text(self) -> str:
        """Return the text of a stream's first choice."""
        deltas = [choice["delta"] for event in self.events for choice in event.get("choices", ())]
        return "".join(delta.get("content") or "" for delta in deltas)


@dataclass(kw_only=True)
class RouterProcess:
    """One `python -m kars_router`; start, kill and start again on the same state.

    Attributes:
        directory: state, logs and configuration of this router.
        providers: (name, base URL) of each provider.
        policy: bundle that is its last known good one; None for none.
        env: further settings, without the prefix.
    """

    directory: Path
    providers: Sequence[tuple[str, str]]
    policy: policy_pb2.PolicyBundle | None = field(default_factory=make_bundle)
    env: Mapping[str, str] = field(default_factory=dict)
    key: str = CANARY_KEY
    signer: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    def __enter__(self) -> Self:
        self.prepare()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def state(self) -> Path:
        """Return the router's state directory."""
        return self.directory / "state"

    @property
    def log_file(self) -> Path:
        """Return where its output goes."""
        return self.directory / "router.log"

    @property
    def base_url(self) -> str:
        """Return the address for the official client."""
        return f"http://127.0.0.1:{self.port}/v1"

    def prepare(self) -> None:
        """Write configuration and policy."""
        self.state.mkdir(parents=True, exist_ok=True)
        self.write_key(self.key)
        entries = [
            {"name": name, "baseUrl": url, "auth": {"keyFile": "provider.key"}}
            for name, url in self.providers
        ]
        (self.directory / "providers.json").write_bytes(orjson.dumps({"providers": entries}))
        keys_file = self.directory / "policy-keys.json"
        if self.policy is not None:
            sign_into(self.state / "policy", keys_file, self.policy, self.signer)
        else:
            keys_file.write_bytes(b"[]")

    def write_key(self, key: str, mode: int = 0o600) -> None:
        """Write the providers' key file."""
        path = self.directory / "provider.key"
        path.touch(mode=0o600)
        path.write_text(key)
        path.chmod(mode)

    def start(self, *, wait: bool = True) -> None:
        """Start the process on a fresh port and wait until it listens."""
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        door.listen(1024)
        self.port = door.getsockname()[1]
        settings = {
            "NAMESPACE": "team",
            "SANDBOX": "agent",
            "DOOR_FD": str(door.fileno()),
            "STATE_DIR": str(self.state),
            "PROVIDERS_FILE": str(self.directory / "providers.json"),
            "POLICY_KEYS_FILE": str(self.directory / "policy-keys.json"),
            **self.env,
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KARS_")}
        environment |= {f"KARS_ROUTER_{name}": value for name, value in settings.items()}
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kars_router"],
                env=environment,
                pass_fds=[door.fileno()],
                stdout=output,
                stderr=output,
            )
        door.close()
        if wait:
            self.wait_healthy()

    def wait_healthy(self) -> None:
        """Wait until the door answers; the listener queues, so one request is enough."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"the router ended: {self.log_file.read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                if self.request("GET", "/healthz").status == 200:
                    return
        raise TimeoutError("the router does not answer")

    def kill(self) -> None:
        """Kill it with SIGKILL, as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def stop(self) -> int:
        """End it with SIGTERM; returns the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        code = self.process.wait(40)
        self.process = None
        return code

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """Send one request on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return HttpAnswer(
                status=response.status,
                headers={name.lower(): value for name, value in response.getheaders()},
                body=response.read(),
            )
        finally:
            connection.close()

    def chat(self, *, headers: Mapping[str, str] | None = None, **fields: Any) -> HttpAnswer:  # noqa: ANN401 - a JSON value
        """Send a chat completion; `fields` override the smallest valid request."""
        body = {"model": "gpt-test", "messages": [{"role": "user", "content": "hi"}], **fields}
        everything = {"content-type": "application/json", **(headers or {})}
        return self.request("POST", "/v1/chat/completions", orjson.dumps(body), everything)

    def evaluate(self, **fields: Any) -> HttpAnswer:  # noqa: ANN401 - a JSON value
        """Ask the runtime's question before a tool."""
        return self.request(
            "POST", "/agt/evaluate", orjson.dumps(fields), {"content-type": "application/json"}
        )

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the audit records on disk."""
        found: list[dict[str, Any]] = []
        for path in sorted((self.state / "audit").glob("*.jsonl")):
            found.extend(orjson.loads(line) for line in path.read_bytes().splitlines() if line)
        return [record for record in found if kind is None or record["type"] == kind]

    def metric(self, name: str) -> Iterator[str]:
        """Yield the lines of one metric."""
        for line in self.request("GET", "/metrics").body.decode().splitlines():
            if line.startswith(name):
                yield line

    def verified(self) -> bool:
        """Tell whether the audit log on disk verifies."""
        raw = (self.state / "audit-signing.key").read_bytes()
        public_key = Ed25519PrivateKey.from_private_bytes(raw).public_key()
        return verify_directory(self.state / "audit", public_key).ok
