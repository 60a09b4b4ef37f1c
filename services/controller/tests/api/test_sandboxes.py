"""Sandboxes, witness and operator files, as an operator meets them."""

import asyncio
import json
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.audit.v1 import audit_pb2, audit_pb2_grpc
from kars.policy.v1 import policy_pb2
from kars.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from kars_common.audit import AuditLog, open_cosignature
from kars_common.audit.service import submit_over
from kars_common.audit.witness import WitnessedLog
from kars_common.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
)
from kars_common.identity import load_svid
from kars_common.rpc import mapped_errors
from kars_controller import testing
from kars_controller.platforms.base import SandboxKey

Harness = Any
KEY = SandboxKey("default", "agent")
OWN = policy_pb2.SandboxRef(namespace="default", name="agent")


async def running(harness: Harness) -> Any:
    await harness.apply(testing.inference_policy(), testing.tool_policy(), testing.sandbox())
    await harness.until(lambda: bool(harness.platform.plans))
    return harness.operator().stub(sandbox_pb2_grpc.SandboxesStub)


async def test_state_of_a_sandbox(harness: Harness) -> None:
    stub = await running(harness)
    answer = await stub.GetSandbox(sandbox_pb2.GetSandboxRequest(sandbox=OWN))
    assert [item.name for item in answer.containers] == ["agent", "router"]
    assert answer.containers[0].state == sandbox_pb2.CONTAINER_STATE_RUNNING
    with pytest.raises(NotFoundError) as refusal, mapped_errors():
        await stub.GetSandbox(
            sandbox_pb2.GetSandboxRequest(sandbox=policy_pb2.SandboxRef(namespace="x", name="../etc"))
        )
    assert refusal.value.reason == "sandbox_not_found"


async def test_logs_come_in_whole_lines_of_valid_text(harness: Harness) -> None:
    stub = await running(harness)
    request = sandbox_pb2.StreamLogsRequest(sandbox=OWN, tail_lines=7)
    chunks = [chunk.data async for chunk in stub.StreamLogs(request)]
    assert chunks == [b"agent 7 False\n", b"second \xef\xbf\xbd\n"]
    with pytest.raises(InvalidInputError), mapped_errors():
        await stub.StreamLogs(sandbox_pb2.StreamLogsRequest(sandbox=OWN, tail_lines=99_999)).read()


async def test_connect_carries_bytes_both_ways_and_is_on_record(harness: Harness) -> None:
    stub = await running(harness)
    outside, inside = socket.socketpair()
    harness.platform.ports[KEY, 18789] = outside
    call = stub.Connect()
    await call.write(sandbox_pb2.ConnectRequest(open=sandbox_pb2.ConnectOpen(sandbox=OWN)))
    await call.write(sandbox_pb2.ConnectRequest(data=b"question"))
    inside.settimeout(0)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        assert await loop.sock_recv(inside, 100) == b"question"
        await loop.sock_sendall(inside, b"answer")
        assert (await call.read()).data == b"answer"
        await call.done_writing()
        assert await loop.sock_recv(inside, 100) == b""
    inside.close()
    (record,) = [item for item in harness.controller.audit.records(0) if item["type"] == "sandbox.connected"]
    assert record["operator"] == "spiffe://kars.local/operator/ann"


async def test_connect_to_nothing_says_what_is_missing(harness: Harness) -> None:
    await harness.apply(testing.sandbox("absent", inferenceRef={"name": "none"}))
    stub = await running(harness)
    for name, reason in (("absent", "sandbox_not_running"), ("agent", "port_refused")):
        call = stub.Connect()
        ref = policy_pb2.SandboxRef(namespace="default", name=name)
        await call.write(sandbox_pb2.ConnectRequest(open=sandbox_pb2.ConnectOpen(sandbox=ref)))
        with pytest.raises(Exception) as refusal, mapped_errors():  # noqa: PT011 - two classes, one reason each
            await call.read()
        assert getattr(refusal.value, "reason", "") == reason


async def test_host_report(harness: Harness) -> None:
    stub = await running(harness)
    report = await stub.GetHostReport(sandbox_pb2.GetHostReportRequest())
    assert (report.platform, report.tier) == ("fake", "full")
    assert (report.kernel, report.root) == ("6.12.0", True)


async def test_a_router_is_no_operator(harness: Harness) -> None:
    stub = harness.router().stub(sandbox_pb2_grpc.SandboxesStub)
    with pytest.raises(PermissionDeniedError), mapped_errors():
        await stub.GetHostReport(sandbox_pb2.GetHostReportRequest())


async def test_heads_are_witnessed_for_their_own_log_and_a_rewritten_log_is_not(
    start: Any, tmp_path: Path
) -> None:
    signer = Ed25519PrivateKey.generate()
    origin = "spiffe://kars.local/ns/default/sandbox/agent"
    async with start() as harness:
        stub = harness.router().stub(audit_pb2_grpc.AuditWitnessStub)
        witness = harness.controller.witness
        log = AuditLog.open(tmp_path / "log", origin, signer)
        await log.durable(log.append("call.admitted", {"n": 1}))
        witnessed = WitnessedLog(log, submit_over(stub.WitnessCheckpoint), witness.name, witness.public_key)
        assert await witnessed.witness_once() == 1
        await log.close()
        operator = harness.operator().stub(audit_pb2_grpc.AuditWitnessStub)
        kept = await operator.GetWitnessed(audit_pb2.GetWitnessedRequest(origin=origin))
        opened = open_cosignature(kept.signed_note, witness.name, witness.public_key)
        assert opened.checkpoint.size == 1
    async with start() as harness:
        log = AuditLog.open(tmp_path / "rewritten", origin, signer)
        await log.durable(log.append("call.admitted", {"n": 2}))
        stub = harness.router().stub(audit_pb2_grpc.AuditWitnessStub)

        async def submit(request: audit_pb2.WitnessCheckpointRequest) -> audit_pb2.WitnessCheckpointResponse:
            with mapped_errors():
                answer: audit_pb2.WitnessCheckpointResponse = await stub.WitnessCheckpoint(request)
            return answer

        witness = harness.controller.witness
        rewritten = WitnessedLog(log, submit_over(submit), witness.name, witness.public_key)
        with pytest.raises(FailedPreconditionError) as refusal:
            await rewritten.witness_once()
        assert refusal.value.reason == "checkpoint_inconsistent"
        await log.close()


async def test_what_is_left_for_the_command_is_private_and_works(harness: Harness, tmp_path: Path) -> None:
    document = json.loads((tmp_path / "dev.json").read_text())
    assert document["controller"]["endpoint"] == harness.controller.endpoint
    assert load_svid(tmp_path / "cli").spiffe_id.path == "/operator/ann"
    secret = [
        "cli/operator.key",
        "controller/ca/root.key",
        "controller/policy-signing.key",
        "controller/audit.key",
    ]
    for name in (*secret, "controller/resources.db", "controller/witness.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name


async def test_stopping_leaves_the_pods(start: Any) -> None:
    async with start() as harness:
        await running(harness)
        platform = harness.platform
    assert platform.plans
    assert platform.closed
