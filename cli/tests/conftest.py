"""A controller and a router of fakes behind real mTLS servers, and the real command as a process."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kars.audit.v1 import audit_pb2, audit_pb2_grpc
from kars.budget.v1 import budget_pb2, budget_pb2_grpc
from kars.governance.v1 import governance_pb2, governance_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from kars_common.audit import AuditLog, AuditLogServicer
from kars_common.rpc import ANY_IDENTITY, AuthorizationTable, RpcServer
from kars_common.testing import MemoryAuthority, StaticSvidSource

from cli.tests.fakes import FakeApprovals, FakeBudgets, FakeEnforcement, FakeResources, FakeSandboxes, new_log


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> object:
        return json.loads(self.out)


class Kars:
    """The real command, with a state directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    async def __call__(self, *arguments: str, stdin: str = "", **environ: str) -> Ended:
        base = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "KARS_HOME": str(self.home),
            "COLUMNS": "200",
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", "-m", "kars_cli"),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=base | environ,
        )
        async with asyncio.timeout(30):
            out, err = await child.communicate(stdin.encode())
        assert child.returncode is not None
        return Ended(child.returncode, out.decode(), err.decode())


@dataclass(frozen=True)
class FakePlatform:
    """What the command talks to."""

    kars: Kars
    resources: FakeResources
    sandboxes: FakeSandboxes
    approvals: FakeApprovals
    enforcement: FakeEnforcement
    budgets: FakeBudgets
    log: AuditLog


_CONTRACTS = (audit_pb2, budget_pb2, governance_pb2, policy_pb2, resource_pb2, sandbox_pb2)


def _table() -> AuthorizationTable:
    """Let anyone of the trust domain call anything: authorization is the services' own business."""
    methods = [
        f"{service.full_name}/{method.name}"
        for contract in _CONTRACTS
        for service in contract.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    return AuthorizationTable({name: [ANY_IDENTITY] for name in methods})


@pytest.fixture
def kars(tmp_path: Path) -> Kars:
    """The command where no platform was ever started."""
    return Kars(tmp_path / "home")


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[FakePlatform]:
    """A platform with one sandbox, `default/reporter`."""
    authority, home = MemoryAuthority(), tmp_path / "home"
    log = new_log(tmp_path / "audit")
    fakes = FakePlatform(
        Kars(home), FakeResources(), FakeSandboxes(), FakeApprovals(), FakeEnforcement(), FakeBudgets(), log
    )
    router = RpcServer(StaticSvidSource(authority.sandbox("default", "reporter")), _table(), "127.0.0.1:0")
    router.add(policy_pb2_grpc.add_PolicyEnforcementServicer_to_server, fakes.enforcement)
    router.add(budget_pb2_grpc.add_BudgetsServicer_to_server, fakes.budgets)
    router.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(log))
    fakes.sandboxes.router_endpoint = f"127.0.0.1:{await router.start()}"
    controller = RpcServer(StaticSvidSource(authority.service("controller")), _table(), "127.0.0.1:0")
    controller.add(resource_pb2_grpc.add_ResourcesServicer_to_server, fakes.resources)
    controller.add(sandbox_pb2_grpc.add_SandboxesServicer_to_server, fakes.sandboxes)
    controller.add(governance_pb2_grpc.add_ApprovalsServicer_to_server, fakes.approvals)
    controller.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(log))
    endpoint = f"127.0.0.1:{await controller.start()}"
    _write_home(home, authority, endpoint)
    yield fakes
    await controller.stop(0)
    await router.stop(0)
    await log.close()


def _write_home(home: Path, authority: MemoryAuthority, endpoint: str) -> None:
    identity = authority.operator("tester")
    (home / "cli").mkdir(parents=True, mode=0o700)
    for name, data in (
        ("operator.pem", identity.certificate_chain_pem),
        ("operator.key", identity.private_key_pem),
        ("trust.pem", identity.trust_bundle_pem),
    ):
        (home / "cli" / name).write_bytes(data)
        (home / "cli" / name).chmod(0o600)
    where = {
        "controller": {
            "endpoint": endpoint,
            "bootstrapEndpoint": "127.0.0.1:1",
            "dnsName": "controller.svc.kars.local",
            "pid": os.getpid(),
        },
        "trustDomain": "kars.local",
    }
    (home / "dev.json").write_text(json.dumps(where))
