"""Each command against fakes of the real servicers, over real mTLS, as a real process."""

import asyncio
import json
import os
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.audit import verifier_key

from cli.tests.conftest import FakePlatform, Kars
from cli.tests.fakes import APPROVAL_ID

SANDBOX = """\
apiVersion: kars.azure.com/v1alpha1
kind: KarsSandbox
metadata: {name: reporter}
spec:
  inferenceRef: {name: quick}
"""
POLICY = """\
apiVersion: kars.azure.com/v1alpha1
kind: InferencePolicy
metadata: {name: quick}
spec: {}
"""
WRONG = """\
apiVersion: kars.azure.com/v1alpha1
kind: KarsSandbox
metadata:
  name: reporter
spec:
  sandbox:
    isolation: tight
"""


async def test_apply_creates_policies_before_sandboxes_and_waits(
    platform: FakePlatform, tmp_path: Path
) -> None:
    (tmp_path / "all.yaml").write_text(f"{SANDBOX}---\n{POLICY}")
    ended = await platform.kars("apply", "-f", str(tmp_path / "all.yaml"), "--wait")
    assert ended.code == 0, ended.err
    assert ended.out.index("inferencepolicy/quick created") < ended.out.index("karssandbox/reporter created")
    assert "note: spec.agent: has no effect" in ended.out
    assert "default/reporter: Running" in ended.err
    assert set(platform.resources.documents) == {
        ("InferencePolicy", "default", "quick"),
        ("KarsSandbox", "default", "reporter"),
    }


async def test_apply_says_file_line_field_got_and_allowed(platform: FakePlatform, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    ended = await platform.kars("apply", "-f", str(file))
    assert ended.code == 1
    assert f'{file}:7 spec.sandbox.isolation: got "tight", allowed: standard, enhanced' in ended.err
    assert f"{file}:5 spec.inferenceRef: is required" in ended.err
    assert "schema_invalid" in ended.err
    assert "Traceback" not in ended.err


async def test_apply_goes_on_after_a_refused_document_and_fails(
    platform: FakePlatform, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(f"{POLICY}---\n{WRONG}")
    ended = await platform.kars("apply", "-f", str(tmp_path))
    assert ended.code == 1
    assert "inferencepolicy/quick created" in ended.out


async def test_dry_run_stores_nothing(platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POLICY)
    ended = await platform.kars("apply", "-f", str(tmp_path / "a.yaml"), "--dry-run")
    assert (ended.code, "(dry run)" in ended.out) == (0, True)
    assert platform.resources.documents == {}


async def test_wait_gives_up_on_a_failed_sandbox_with_its_reason(
    platform: FakePlatform, tmp_path: Path
) -> None:
    platform.resources.phase = "Failed"
    (tmp_path / "a.yaml").write_text(SANDBOX)
    ended = await platform.kars("apply", "-f", str(tmp_path / "a.yaml"), "--wait")
    assert ended.code == 1
    assert "sandbox_failed" in ended.err


async def test_broken_yaml_is_refused_with_its_line_before_anything_is_sent(
    kars: Kars, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("kind: A\nmetadata: {name: [}\n")
    ended = await kars("apply", "-f", str(tmp_path / "a.yaml"))
    assert ended.code == 1
    assert "a.yaml:2" in ended.err
    assert "manifest_malformed" in ended.err


async def _with_sandbox(platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SANDBOX)
    ended = await platform.kars("apply", "-f", str(tmp_path / "a.yaml"))
    assert ended.code == 0, ended.err


async def test_get_prints_the_columns_of_the_kind(platform: FakePlatform, tmp_path: Path) -> None:
    await _with_sandbox(platform, tmp_path)
    table, wide, name, data = await asyncio.gather(
        platform.kars("get", "cs"),
        platform.kars("get", "KarsSandbox", "-A", "-o", "wide"),
        platform.kars("get", "karssandboxes", "-o", "name"),
        platform.kars("get", "cs", "reporter", "-o", "json"),
    )
    assert table.out.split() == ["NAME", "PHASE", "reporter", "Running"]
    assert wide.out.split() == [
        "NAMESPACE",
        "NAME",
        "PHASE",
        "READY",
        "default",
        "reporter",
        "Running",
        "True",
    ]
    assert name.out == "karssandbox/reporter\n"
    document = data.json()
    assert isinstance(document, dict)
    assert document["metadata"]["name"] == "reporter"


async def test_unknown_kind_and_unknown_name_are_refused_with_what_is_there(platform: FakePlatform) -> None:
    kind, name = await asyncio.gather(platform.kars("get", "pod"), platform.kars("get", "cs", "nobody"))
    assert (kind.code, name.code) == (1, 1)
    assert "kind_not_served" in kind.err
    assert "karssandboxes, cs" in kind.err
    assert "resource_not_found" in name.err
    assert "next: see what is there" in name.err


async def test_describe_shows_conditions_containers_isolation_and_events(
    platform: FakePlatform, tmp_path: Path
) -> None:
    await _with_sandbox(platform, tmp_path)
    ended = await platform.kars("describe", "cs", "reporter")
    assert ended.code == 0, ended.err
    for expected in ("Conditions", "Reconciled", "agent", "seccomp", "enforced", "the agent runs"):
        assert expected in ended.out


async def test_delete_never_asks_a_program_and_wants_yes(platform: FakePlatform, tmp_path: Path) -> None:
    await _with_sandbox(platform, tmp_path)
    refused = await platform.kars("delete", "cs", "reporter")
    assert refused.code == 1
    assert "confirmation_needed" in refused.err
    assert platform.resources.documents
    ended = await platform.kars("delete", "cs", "reporter", "--yes")
    assert (ended.code, platform.resources.documents) == (0, {})


async def test_logs_print_the_named_container(platform: FakePlatform) -> None:
    ended = await platform.kars("logs", "reporter", "-c", "router")
    assert ended.code == 0, ended.err
    assert ended.out == "router says hello\nlast \N{REPLACEMENT CHARACTER}\n"


def _turn(*events: dict[str, str]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


async def test_connect_prints_the_reply_and_reads_standard_input(platform: FakePlatform) -> None:
    for text in ("Hel", "again"):
        platform.sandboxes.answers.append(
            _turn({"type": "tool_call", "name": "read"}, {"type": "delta", "text": text}, {"type": "done"})
        )
    ended = await platform.kars("connect", "reporter", stdin="hello\n\nonce more\n")
    assert ended.code == 0, ended.err
    assert ended.out == "Hel\nagain\n"
    assert [json.loads(line)["text"] for line in platform.sandboxes.heard.splitlines()] == [
        "hello",
        "once more",
    ]


async def test_connect_fails_with_the_refusal_of_the_router(platform: FakePlatform) -> None:
    platform.sandboxes.answers.append(
        _turn({"type": "error", "reason": "approval_denied", "message": "an operator \x1b[31mdenied it"})
    )
    ended = await platform.kars("connect", "reporter", "-m", "publish")
    assert ended.code == 1
    assert "approval_denied" in ended.err
    assert "\x1b" not in ended.err


async def test_connect_to_an_agent_without_chat_is_refused_not_unreachable(platform: FakePlatform) -> None:
    platform.sandboxes.refuse_port = True
    ended = await platform.kars("connect", "reporter", "-m", "hello", "--timeout", "0.3")
    assert ended.code == 1
    assert "port_refused" in ended.err


async def test_approvals_are_listed_granted_once_and_then_closed(platform: FakePlatform) -> None:
    table, data = await asyncio.gather(
        platform.kars("approvals", "list"), platform.kars("approvals", "list", "-o", "json")
    )
    assert APPROVAL_ID in table.out
    assert "\x1b" not in table.out
    listed = data.json()
    assert isinstance(listed, list)
    assert (listed[0]["sandbox"], listed[0]["state"]) == ("default/reporter", "pending")
    granted = await platform.kars("approvals", "grant", APPROVAL_ID[:8], "--note", "fine", "-o", "json")
    decided = granted.json()
    assert isinstance(decided, dict)
    assert (decided["state"], decided["note"]) == ("granted", "fine")
    again, empty = await asyncio.gather(
        platform.kars("approvals", "deny", APPROVAL_ID), platform.kars("approvals", "list")
    )
    assert (again.code, "approval_closed" in again.err) == (1, True)
    assert "nothing waits" in empty.out


async def test_approvals_watch_begins_with_what_waits(platform: FakePlatform) -> None:
    ended = await platform.kars("approvals", "watch")
    assert ended.code == 0
    assert "tool:publish_report:q3.md" in ended.out


async def test_policy_show_tells_digest_models_rules_and_budget(platform: FakePlatform) -> None:
    table, data = await asyncio.gather(
        platform.kars("policy", "show", "reporter"), platform.kars("policy", "show", "reporter", "-o", "json")
    )
    assert table.code == 0, table.err
    for expected in (
        "version 3",
        "sha256:00",
        "last known good",
        "gpt-4o-mini (openai)",
        "tool:delete_notes",
        "4 calls",
    ):
        assert expected in table.out
    shown = data.json()
    assert isinstance(shown, dict)
    assert shown["budget"]["windows"][0]["usedTokens"] == 500
    assert shown["inForce"]["policy"]["governance"]["defaultVerdict"] == "VERDICT_DENY"


async def test_audit_tail_filters_and_prints_records(platform: FakePlatform) -> None:
    await platform.log.durable(5)
    records, denied = await asyncio.gather(
        platform.kars("audit", "tail", "reporter", "-o", "json", "-l", "4"),
        platform.kars("audit", "tail", "reporter", "--type", "call.denied"),
    )
    assert [json.loads(line)["seq"] for line in records.out.splitlines()] == [2, 3, 4, 5]
    assert len(denied.out.splitlines()) == 1
    assert "code=policy_denied" in denied.out


async def test_audit_proof_is_verified_here_and_fails_for_another_key(
    platform: FakePlatform, tmp_path: Path
) -> None:
    await platform.log.durable(5)
    key = tmp_path / "audit" / "key"
    other = tmp_path / "other.key"

    other.write_text(verifier_key(platform.log.origin, Ed25519PrivateKey.generate().public_key()))
    good, bad = await asyncio.gather(
        platform.kars("audit", "proof", "3", "reporter", "--key", str(key)),
        platform.kars("audit", "proof", "3", "reporter", "--key", str(other)),
    )
    assert (good.code, "proved" in good.out) == (0, True), good.err
    assert (bad.code, "not proved" in bad.out) == (2, True)


async def test_audit_verify_needs_no_platform_and_locates_a_flipped_bit(
    platform: FakePlatform, kars: Kars, tmp_path: Path
) -> None:
    await platform.log.close()
    folder = tmp_path / "audit"
    whole = await kars("audit", "verify", str(folder), "--key", str(folder / "key"))
    assert whole.code == 0, whole.out
    segment = next(folder.glob("*.jsonl"))
    data = bytearray(segment.read_bytes())
    data[data.index(b'"charged":2') + 10] ^= 1
    segment.write_bytes(data)
    ended = await kars("audit", "verify", str(folder), "-o", "json")
    assert ended.code == 2
    report = ended.json()
    assert isinstance(report, dict)
    assert (report["finding"]["file"], report["finding"]["line"]) == (segment.name, 3)


async def test_doctor_prints_the_running_platforms_report(platform: FakePlatform) -> None:
    dev = json.loads((platform.kars.home / "dev.json").read_text())
    assert dev["controller"]["pid"]  # this process is no controller: the machine itself is examined
    ended = await platform.kars("doctor", "-o", "json")
    report = ended.json()
    assert isinstance(report, dict)
    assert {"platform", "tier", "controls"} <= set(report)
    assert (report["kernel"], report["root"]) == (os.uname().release, os.geteuid() == 0)
    assert ended.code in (0, 1)
    table = await platform.kars("doctor")
    assert os.uname().release in table.out
    assert ("as root" if os.geteuid() == 0 else "as an ordinary user") in table.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "cs"),
        ("apply", "-f", "/dev/null"),
        ("approvals", "list"),
        ("logs", "x"),
        ("policy", "show", "x"),
    ],
)
async def test_without_a_platform_every_command_says_what_to_do(
    kars: Kars, arguments: tuple[str, ...]
) -> None:
    ended = await kars(*arguments)
    assert ended.code == (1 if arguments[0] == "apply" else 3)
    assert "Traceback" not in ended.err
    assert arguments[0] == "apply" or "kars dev --detach" in ended.err


async def test_a_controller_that_is_gone_is_not_reachable(platform: FakePlatform) -> None:
    path = platform.kars.home / "dev.json"
    document = json.loads(path.read_text())
    document["controller"]["endpoint"] = "127.0.0.1:1"
    path.write_text(json.dumps(document))
    ended = await platform.kars("get", "cs")
    assert ended.code == 3
    assert "not reachable" in ended.err


async def test_wrong_usage_ends_with_2_and_help_names_the_exit_codes(kars: Kars) -> None:
    wrong, usage = await asyncio.gather(kars("get"), kars("--help"))
    assert (wrong.code, usage.code) == (2, 0)
    assert "3 not" in re.sub(r"\s+", " ", usage.out)


async def test_version_and_completion_work_without_a_platform(kars: Kars) -> None:
    version, completion = await asyncio.gather(
        kars("version", "-o", "json"),
        kars(_KARS_COMPLETE="complete_bash", COMP_WORDS="kars a", COMP_CWORD="1"),
    )
    shown = version.json()
    assert isinstance(shown, dict)
    assert shown["kars-cli"]
    assert {"apply", "approvals", "audit"} <= set(completion.out.split())
