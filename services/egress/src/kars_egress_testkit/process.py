"""The egress service as a process of its own, for what only a kill shows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from kars.egress.v1 import egress_pb2, egress_pb2_grpc
from kars_common.rpc import PeerChannel
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid
from kars_common.testing import MemoryAuthority, StaticSvidSource

from kars_egress_testkit import world
from kars_egress_testkit.running import wait

_Result = TypeVar("_Result")
REF = egress_pb2.SandboxRef(namespace="team", name="writer")


class EgressProcess:
    """One service; `start` again after `kill`."""

    def __init__(self, directory: Path, internet: world.Namespace) -> None:
        """Write identities; nothing runs yet."""
        self.directory = directory
        self.authority = MemoryAuthority()
        self._internet = internet
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("egress", "egress-proxy"):
            _write(directory / name, self.authority.service(name))

    def start(self) -> None:
        """Start it and wait until Envoy is connected."""
        port = self.directory / "state" / "control.port"
        port.unlink(missing_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "KARS_EGRESS_STATE_DIR": str(self.directory / "state"),
            "KARS_EGRESS_SVID_DIR": str(self.directory / "egress"),
            "KARS_EGRESS_ENVOY_SVID_DIR": str(self.directory / "egress-proxy"),
            "KARS_EGRESS_RESOLVER": f"{world.RESOLVER[0]}:{world.RESOLVER[1]}",
            "KARS_EGRESS_ENVOY_NETWORK_NAMESPACE": str(self._internet.path),
        }
        with (self.directory / "egress.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "kars_egress"], env=environment, stderr=log, stdout=log
            )
        wait(port.exists, "the service listens", 20)

    def apply(self, namespace: world.Namespace, *hosts: str) -> None:
        """Allow hosts (http and https) and wait until Envoy has it."""
        targets = [
            egress_pb2.AllowedTarget(host=host, scheme=scheme)
            for host in hosts
            for scheme in (egress_pb2.SCHEME_HTTP, egress_pb2.SCHEME_HTTPS)
        ]
        request = egress_pb2.ApplySandboxRequest(
            sandbox=REF, targets=targets, network_namespace=str(namespace.path)
        )
        self.call(lambda stub: stub.ApplySandbox(request), self.authority.service("controller"))
        self.wait_active()

    def wait_active(self) -> None:
        """Wait until Envoy acknowledged the policy."""
        request = egress_pb2.GetSandboxStatusRequest(sandbox=REF)
        active = egress_pb2.DISTRIBUTION_ACTIVE
        wait(
            lambda: self.call(lambda stub: stub.GetSandboxStatus(request)).distribution == active,
            "Envoy acknowledges",
        )

    def call(
        self,
        what: Callable[[egress_pb2_grpc.EgressControlAsyncStub], Awaitable[_Result]],
        svid: Svid | None = None,
    ) -> _Result:
        """Call the control service as an operator, or as somebody else."""

        async def run() -> _Result:
            port = int((self.directory / "state" / "control.port").read_text())
            channel = PeerChannel(
                StaticSvidSource(svid or self.authority.operator("olga")),
                f"127.0.0.1:{port}",
                SpiffeId.service("kars.local", "egress").dns_name,
            )
            try:
                stub: Any = channel.stub(egress_pb2_grpc.EgressControlStub)
                return await what(stub)
            finally:
                await channel.close()

        return asyncio.run(run())

    @property
    def envoy_pid(self) -> int:
        """The Envoy that runs now, or ran last."""
        return int((self.directory / "state" / "envoy" / "envoy.pid").read_text())

    def kill(self) -> None:
        """Kill it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, and an Envoy that it left behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)
        try:
            arguments = Path(f"/proc/{self.envoy_pid}/cmdline").read_bytes()
            if str(self.directory).encode() in arguments:
                os.kill(self.envoy_pid, signal.SIGKILL)
        except (OSError, ValueError):
            return

    def records(self) -> list[dict[str, Any]]:
        """Read the audit log from its files."""
        files = sorted((self.directory / "state" / "audit").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def _write(directory: Path, svid: Svid) -> None:
    directory.mkdir(mode=0o700)
    for name, data in (
        ("tls.crt", svid.certificate_chain_pem),
        ("tls.key", svid.private_key_pem),
        ("ca.crt", svid.trust_bundle_pem),
    ):
        file = directory / name
        file.touch(mode=0o600)
        file.write_bytes(data)
