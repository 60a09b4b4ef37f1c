"""The quickstart as a person meets it: the real command, controller, router and sandbox, no fakes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "examples" / "quickstart" / "manifests"

pytestmark = [pytest.mark.timeout(240)]


@dataclass(frozen=True)
class Platform:
    """A running platform in a folder of its own."""

    home: Path

    def kars(self, *arguments: str, timeout_s: float = 90) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "kars_cli", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "KARS_HOME": str(self.home),
                "COLUMNS": "200",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def pod(self, name: str) -> Path:
        return self.home / "pods" / "default" / name


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    key = folder / "provider.key"
    key.write_text("quickstart-key")
    server = subprocess.Popen(
        [sys.executable, "-m", "examples.model_server", "--key-file", str(key), "--with-parent"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    running = Platform(folder / "home")
    started = running.kars("dev", "--detach", "--provider", f"openai={url}", "--provider-key-file", str(key))
    try:
        assert started.returncode == 0, started.stderr
        applied = running.kars("apply", "-f", str(MANIFESTS), "--wait")
        assert applied.returncode == 0, applied.stderr
        yield running
    finally:
        stopped = running.kars("dev", "stop")
        server.communicate(timeout=10)
    assert stopped.returncode == 0, stopped.stdout
    assert running.kars("dev", "status").returncode == 3


def test_agent_can_be_talked_to_and_a_forbidden_tool_is_refused(platform: Platform) -> None:
    hello = platform.kars("connect", "incident-reporter", "-m", "hello there")
    assert (hello.returncode, hello.stdout) == (0, "You said: hello there\n"), hello.stderr
    deleted = platform.kars("connect", "incident-reporter", "-m", "delete the first note")
    assert deleted.returncode == 1
    assert "policy_denied" in deleted.stderr
    assert (platform.pod("incident-reporter") / "workspace" / "notes" / "1-timeline.md").exists()


def test_closed_port_is_a_refusal(platform: Platform) -> None:
    ended = platform.kars("connect", "incident-reporter", "-m", "hello", "--port", "18788", "--timeout", "0")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("runtime:\n", "runtimes:\n"),
            ("3-sandbox.yaml", "spec.runtimes: unknown field (did you mean runtime?)"),
        ),
        (
            ("kind: PydanticAi\n", "kind: PydanticAI\n"),
            ("spec.runtime.kind: got", "PydanticAI", "allowed:", "PydanticAi"),
        ),
        (("name: incident-reporter", "name: Incident_Reporter"), ("metadata.name",)),
    ],
)
def test_wrong_manifest_is_refused_with_place_and_what_is_allowed(
    platform: Platform, tmp_path: Path, change: tuple[str, str], expected: tuple[str, ...]
) -> None:
    text = (MANIFESTS / "3-sandbox.yaml").read_text()
    assert change[0] in text
    (tmp_path / "3-sandbox.yaml").write_text(text.replace(change[0], change[1], 1))
    ended = platform.kars("apply", "-f", str(tmp_path / "3-sandbox.yaml"))
    assert ended.returncode == 1
    for part in expected:
        assert part in ended.stderr


def test_missing_reference_is_named_when_it_is_applied(platform: Platform, tmp_path: Path) -> None:
    text = (MANIFESTS / "3-sandbox.yaml").read_text()
    text = text.replace("name: incident-reporter", "name: lonely", 1).replace(
        "name: quickstart", "name: nowhere", 1
    )
    text = text.replace("../", f"{MANIFESTS.parent}/")
    (tmp_path / "lonely.yaml").write_text(text)
    ended = platform.kars("apply", "-f", str(tmp_path / "lonely.yaml"), "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "nowhere" in ended.stdout
    assert "InferencePolicy" in ended.stdout


def test_wrong_rule_inside_the_policy_text_is_located(platform: Platform, tmp_path: Path) -> None:
    text = (MANIFESTS / "2-tool-policy.yaml").read_text()
    line = text[: text.index("type: approval")].count("\n") + 1
    (tmp_path / "tools.yaml").write_text(text.replace("type: approval", "type: approvals"))
    ended = platform.kars("apply", "-f", str(tmp_path / "tools.yaml"))
    assert ended.returncode == 1
    assert f"tools.yaml:{line} spec.agtProfile.inline.policies[0].type" in ended.stderr


def test_agent_outlives_the_controller_and_is_taken_over_again(platform: Platform) -> None:
    before = json.loads(platform.kars("get", "cs", "incident-reporter", "-o", "json").stdout)
    assert platform.kars("dev", "stop", "--keep").returncode == 0
    status = json.loads(platform.kars("dev", "status", "-o", "json").stdout)
    assert status["running"] is False
    assert status["pods"]["default/incident-reporter"] == "running"
    assert platform.kars("get", "cs").returncode == 3
    assert platform.kars("dev", "--detach").returncode == 0
    assert platform.kars("apply", "-f", str(MANIFESTS), "--wait").returncode == 0
    after = json.loads(platform.kars("get", "cs", "incident-reporter", "-o", "json").stdout)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["restartCount"] == before["status"]["restartCount"]
    again = platform.kars("connect", "incident-reporter", "-m", "still there?")
    assert (again.returncode, again.stdout) == (0, "You said: still there?\n"), again.stderr


def test_provider_key_is_in_no_file_that_others_may_read(platform: Platform) -> None:
    holders = []
    for file in platform.home.rglob("*"):
        if file.is_file() and file.suffix != ".img" and b"quickstart-key" in file.read_bytes():
            holders.append(file)
            assert file.stat().st_mode & 0o077 == 0, file
    assert holders


def test_two_agents_on_two_frameworks_exchange_a_task_and_a_file(platform: Platform) -> None:
    told = platform.kars("connect", "incident-reporter", "-m", "Send the incident report to the reviewer.")
    assert told.returncode == 0, told.stderr
    assert "Reviewed: the cause is named" in told.stdout
    sent = platform.pod("incident-reporter") / "workspace" / "reports" / "incident-report.md"
    received = platform.pod("reviewer") / "workspace" / "incoming" / "incident-report.md"
    assert received.read_bytes() == sent.read_bytes()
    assert platform.kars("connect", "reviewer", "-m", "/kars_nothing").returncode == 1


def test_what_an_operator_sees_of_the_mesh_and_what_not(platform: Platform) -> None:
    canary = "canary-7f3a1b-of-the-mesh"
    sent = platform.kars("mesh", "send", "incident-reporter", "reviewer", canary)
    assert (sent.returncode, sent.stdout.strip()) == (0, "delivered"), sent.stderr
    status = json.loads(platform.kars("mesh", "status", "-o", "json").stdout)
    assert (status["connectedPeers"], status["store"]) == (2, "sqlite")
    assert status["policyVersion"] > 0
    peers = {item["peer"].rpartition("/")[2]: item for item in mesh(platform, "peers")}
    assert peers.keys() == {"incident-reporter", "reviewer"}
    edges = {(e["from"].rpartition("/")[2], e["to"].rpartition("/")[2]) for e in mesh(platform, "trust")}
    assert edges == {("incident-reporter", "reviewer"), ("reviewer", "incident-reporter")}
    inbox = platform.kars("mesh", "inbox", "reviewer", "-o", "json").stdout
    assert any(item["direction"] == "in" for item in json.loads(inbox)["records"])
    assert canary not in inbox
    for store in (platform.home / "services", platform.pod("reviewer") / "router"):
        for file in store.rglob("*"):
            assert not file.is_file() or canary.encode() not in file.read_bytes(), file


def test_a_name_is_verified_from_log_and_controller_and_a_stranger_has_none(platform: Platform) -> None:
    one = json.loads(platform.kars("mesh", "verify", "reviewer", "incident-reporter", "-o", "json").stdout)
    two = json.loads(platform.kars("mesh", "verify", "incident-reporter", "reviewer", "-o", "json").stdout)
    assert [item["stated"] for item in one["peers"]] == [True, True]
    assert len(one["safetyNumber"].split()) == 12
    assert one["safetyNumber"] == two["safetyNumber"]
    nobody = platform.kars("mesh", "verify", "nobody")
    assert nobody.returncode == 1
    assert "peer_not_found" in nobody.stderr
    # A relay that starts its log again, under a key of its own, is noticed.
    pinned = platform.home / "cli" / "mesh-log.key"
    kept = pinned.read_text()
    pinned.write_text(kept.replace("mesh-registrations", "mesh-registrationz"))
    changed = platform.kars("mesh", "verify", "reviewer")
    assert (changed.returncode, "mesh_log_key_changed" in changed.stderr) == (1, True)
    pinned.write_text(kept)
    head = platform.home / "cli" / "mesh-log.head"
    seen = json.loads(head.read_text())
    head.write_text(json.dumps({**seen, "size": seen["size"] + 1}))
    rewritten = platform.kars("mesh", "verify", "reviewer")
    assert (rewritten.returncode, "mesh_log_rewritten" in rewritten.stderr) == (1, True)
    head.write_text(json.dumps({**seen, "root": "00" * 32}))
    assert "mesh_log_rewritten" in platform.kars("mesh", "verify", "reviewer").stderr
    head.write_text(json.dumps(seen))


def mesh(platform: Platform, what: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(platform.kars("mesh", what, "-o", "json").stdout)
    return found
