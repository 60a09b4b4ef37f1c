"""What a person sees and does: the real command against the real service and its Envoy."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_egress_testkit import world
from kars_egress_testkit.names import NameServer
from kars_egress_testkit.origins import Origins
from kars_egress_testkit.process import EgressProcess
from kars_egress_testkit.running import wait
from kars_egress_testkit.service import Agent


class Operator:
    """The `kars` command of somebody who operates the platform."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "KARS_HOME": str(self._home),
            "COLUMNS": "200",
        }
        command = [sys.executable, "-W", "error", "-m", "kars_cli", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=False
        )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operator, Agent]]:
    world.needs_root()
    directory = tmp_path_factory.mktemp("operators")
    internet, inside = world.internet(), world.sandbox()
    names, origins = NameServer(internet), Origins(internet, directory)
    process = EgressProcess(directory, internet)
    try:
        process.start()
        process.apply(inside, "api.allowed.test")
        yield Operator(_home(directory, process)), Agent(inside)
    finally:
        process.stop()
        origins.close()
        names.close()
        inside.close()
        internet.close()


def test_denied_explained_approved_and_revoked(parts: tuple[Operator, Agent]) -> None:
    kars, agent = parts
    assert agent.http("pending.test").status == 403
    told = json.loads(kars("egress", "-n", "team", "writer", "explain", "http://pending.test/", "-o", "json"))
    assert (told["allowed"], told["reason"]) == (False, "not_in_allowlist")
    assert told["nextStep"].startswith(
        "ask an operator: kars egress -n team writer approve pending.test:80 --scheme http"
    )
    approve = ("egress", "-n", "team", "writer", "approve", "pending.test", "--scheme", "http")
    made = json.loads(kars(*approve, "--reason", "the report needs it", "--for", "10m", "-o", "json"))
    wait(lambda: agent.http("pending.test").status == 200, "the approval is in force")
    shown = json.loads(kars("egress", "-n", "team", "writer", "status", "-o", "json"))
    assert shown["distribution"] == "active"
    assert shown["approvals"][0]["targets"] == ["http://pending.test:80"]
    assert shown["approvals"][0]["grantedBy"] == "spiffe://kars.local/operator/olga"
    kars("egress", "-n", "team", "writer", "revoke", made["id"])
    wait(lambda: agent.http("pending.test").status == 403, "the approval is gone")


def test_what_was_refused_is_listed(parts: tuple[Operator, Agent]) -> None:
    kars, agent = parts
    for _ in range(3):
        agent.http("hidden.test")

    def listed() -> bool:
        found = json.loads(kars("egress", "-n", "team", "writer", "blocked", "-o", "json"))["targets"]
        return any(item["host"] == "hidden.test" and item["count"] == 3 for item in found)

    wait(listed, "what was refused is listed")


def test_learning_is_shown_and_ended(parts: tuple[Operator, Agent]) -> None:
    kars, agent = parts
    kars("egress", "-n", "team", "writer", "learn", "--for", "5m")
    wait(lambda: agent.http("learn.test").status == 200, "the sandbox learns")
    assert "learning until" in kars("egress", "-n", "team", "writer", "status")
    wait(lambda: "learn.test" in kars("egress", "-n", "team", "writer", "learned"), "it is listed")
    kars("egress", "-n", "team", "writer", "enforce")
    wait(lambda: agent.http("learn.test").status == 403, "learning has ended")
    assert "mode: strict" in kars("egress", "-n", "team", "writer", "status")


def test_decisions_are_followed_live(parts: tuple[Operator, Agent]) -> None:
    kars, agent = parts
    command = [sys.executable, "-m", "kars_cli", "trace", "writer", "-n", "team", "--count", "1"]
    environment = {**os.environ, "KARS_HOME": str(kars._home), "COLUMNS": "200"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:

        def asked() -> bool:
            agent.http("followed.test")
            return following.poll() is not None

        wait(asked, "a decision is shown", 20)
        assert following.stdout is not None
        line = following.stdout.read()
    assert "denied" in line
    assert "followed.test  not_in_allowlist" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("approve", "*.com", "--reason", "x"), "wildcard_too_wide"),
        (("approve", "10.0.0.1", "--reason", "x"), "address_not_allowed"),
        (("approve", "a.test", "--reason", "x", "--for", "2d"), "approval_ttl_invalid"),
        (("approve", "a.test", "--reason", "x", "--for", "soon"), "number and s, m, h or d"),
        (("approve", "a.test:0", "--reason", "x"), "HOST:PORT"),
    ],
)
def test_what_is_refused_says_why(
    parts: tuple[Operator, Agent], arguments: tuple[str, ...], said: str
) -> None:
    done = parts[0].run("egress", "-n", "team", "writer", *arguments)
    assert done.returncode != 0
    assert said in done.stderr + done.stdout


def test_a_sandbox_that_egress_does_not_know_is_named(parts: tuple[Operator, Agent]) -> None:
    done = parts[0].run("egress", "nobody", "status")
    assert done.returncode != 0
    assert "sandbox_not_found" in done.stderr


def _home(directory: Path, process: EgressProcess) -> Path:
    home = directory / "home"
    (home / "cli").mkdir(parents=True, mode=0o700)
    svid = process.authority.operator("olga")
    for name, data in (
        ("operator.pem", svid.certificate_chain_pem),
        ("operator.key", svid.private_key_pem),
        ("trust.pem", svid.trust_bundle_pem),
    ):
        (home / "cli" / name).write_bytes(data)
        (home / "cli" / name).chmod(0o600)
    (home / "egress").symlink_to(directory / "state")
    where = {
        "endpoint": "127.0.0.1:1",
        "bootstrapEndpoint": "127.0.0.1:1",
        "dnsName": "x",
        "pid": os.getpid(),
    }
    (home / "dev.json").write_text(json.dumps({"controller": where, "trustDomain": "kars.local"}))
    return home
