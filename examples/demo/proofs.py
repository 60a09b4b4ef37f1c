"""Each row of the proof table: what was attacked just now, what happened, and whether the control held."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo.platform import DemoError, Platform, wait_for

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One row."""

    control: str
    attack: str
    happened: str
    held: bool


class Probe:
    """What the attacker in its sandbox has printed so far."""

    def __init__(self, platform: Platform, name: str = "probe") -> None:
        self._platform = platform
        self.name = name

    def findings(self, attack: str) -> list[Facts]:
        """All lines about one attack, oldest first."""
        found: list[Facts] = []
        for line in self._platform.agent_lines(self.name):
            try:
                fact = json.loads(line)
            except ValueError:
                continue
            if isinstance(fact, dict) and fact.get("attack") == attack:
                found.append(fact)
        return found

    def first(self, attack: str, deadline_s: float = 60) -> Facts:
        """Wait for the first line about an attack."""
        return wait_for(f"the probe's {attack}", lambda: self.findings(attack)[:1], deadline_s=deadline_s)[0]

    def since(self, moment: float, deadline_s: float = 60) -> Facts:
        """Wait for a round of calls that began after a moment (Unix seconds)."""

        def look() -> list[Facts]:
            return [fact for fact in self.findings("again") if fact["at"] > moment + 1][:1]

        return wait_for("another round of the probe", look, deadline_s=deadline_s)[0]


def zero_credentials(facts: Facts, canary: str, router_files: Path) -> Proof:
    """The router must hold the canary; the agent must find the planted decoy and nothing else."""
    hits = list(facts["hits"])
    copies = [file for file in router_files.rglob("*") if file.is_file()]
    planted = any(canary.encode() in file.read_bytes() for file in copies)
    leaked = [hit for hit in hits if hit != "/tmp/decoy"]
    return Proof(
        control="zero credentials",
        attack="a canary key that the router holds is searched in environment, files, /proc and arguments",
        happened=f"absent in {facts['searched'][0]} places, where a decoy was found; "
        f"{'the router holds it' if planted else 'the router does NOT hold it'}"
        if not leaked and "/tmp/decoy" in hits
        else f"found in {hits or 'nothing, not even the decoy'}",
        held=planted and not leaked and "/tmp/decoy" in hits,
    )


def no_network(facts: Facts, datagrams: int) -> Proof:
    """Nothing is reachable, nothing arrived at the demo's own sockets, only the door answers."""
    tried = ("tcp", "udp", "udp_host", "ipv6", "metadata", "host_loopback", "dns")
    unreachable = all(facts[way] != "open" for way in tried if way != "udp_host")
    held = (
        unreachable
        and facts["interfaces"] == ["lo"]
        and datagrams == 0
        and facts["door"] == 200
        and float(facts["dns_s"]) < 2
    )
    seen = ", ".join(f"{way} {facts[way]}" for way in tried if way != "udp_host")
    return Proof(
        control="no network",
        attack="TCP, UDP, DNS, IPv6, metadata address and the host's loopback, as the agent's uid",
        happened=f"{seen}; datagrams that reached the host: {datagrams}; door: {facts['door']}",
        held=held,
    )


def kernel_surface(facts: Facts) -> Proof:
    """No call that an escape begins with is allowed."""
    tried = ("unshare_user", "mount", "bpf", "ptrace", "keyctl", "io_uring", "write_usr")
    closed = all(facts[name] in ("EPERM", "ENOSYS", "EROFS", "EACCES") for name in tried)
    return Proof(
        control="kernel surface",
        attack="unshare, mount, bpf, ptrace, keyctl, io_uring; a write to /usr",
        happened=", ".join(f"{name} {facts[name]}" for name in tried) + f"; seccomp mode {facts['seccomp']}",
        held=closed
        and facts["seccomp"] == "2"
        and int(facts["capabilities"], 16) == 0
        and facts["no_new_privs"] == "1",
    )


def governed_call(allowed: Facts, outside: Facts) -> Proof:
    """The policy's model answers, any other is refused by name."""
    return Proof(
        control="governed call",
        attack="a model that policy allows, and one that it does not name",
        happened=f"allowed: {allowed['status']}; other: {outside['status']} {outside['code']}",
        held=allowed["status"] == 200 and (outside["status"], outside["code"]) == (403, "policy_denied"),
    )


def budget(cap: Facts, daily: Facts, after_restart: Facts, refused: int) -> Proof:
    """Both limits refuse, the refusals are counted, and a killed router forgets nothing."""
    again = after_restart["budget"]
    held = (
        (cap["status"], cap["code"]) == (429, "per_request_tokens_exceeded")
        and (daily["status"], daily["code"]) == (429, "budget_exceeded")
        and (again["status"], again["code"]) == (429, "budget_exceeded")
        and refused >= 3
    )
    return Proof(
        control="budget",
        attack="one call above the cap, calls until the day is spent, then the router killed with -9",
        happened=f"{cap['status']} {cap['code']}; "
        f"{daily['status']} {daily['code']} at call {daily['calls']}; "
        f"after the restart {again['status']} {again['code']}; {refused} refusals counted",
        held=held,
    )


def approval(granted: bool, denied: Facts) -> Proof:
    """A granted tool call completes, a denied one is refused."""
    return Proof(
        control="approval",
        attack="publish_report twice: granted with `kars approvals grant`, denied with `kars approvals deny`",
        happened=f"first: {'held, granted, completed' if granted else 'did not complete'}; "
        f"second: held, {denied['status']} {denied['code']}",
        held=granted and (denied["status"], denied["code"]) == (403, "approval_denied"),
    )


def audit(platform: Platform, pods: list[str], traces: list[str], outsider: Path) -> Proof:
    """Copies verify with two public keys alone and hold every attack; a flipped byte is found and located."""
    reports = [_copy_and_verify(platform, pod, outsider) for pod in pods]
    text = "".join(file.read_text(errors="replace") for file in outsider.rglob("*.jsonl"))
    recorded = sum(trace in text for trace in traces)
    verified = all(
        report["ok"] and report["keyPinned"] and report["witnessedRecords"] > 0 for report in reports
    )
    flipped, located = _flip(platform, pods[0], outsider)
    records = sum(report["records"] for report in reports)
    return Proof(
        control="audit",
        attack=f"copies of the logs, verified offline with public keys; one byte flipped in {flipped}",
        happened=f"{records} records {'verify' if verified else 'do NOT verify'}; "
        f"{recorded} of {len(traces)} attacks recorded; "
        f"the flip was {'found and located' if located else 'NOT located'}",
        held=verified and recorded == len(traces) and located,
    )


def _copy_and_verify(platform: Platform, pod: str, outsider: Path) -> Facts:
    """Give an outsider a copy of the log and the two public keys, nothing else."""
    router = platform.pod(pod) / "router"
    mine = outsider / pod
    mine.mkdir(parents=True)
    shutil.copy(router / "audit" / "key", mine / "log.key")
    shutil.copy(router / "witness.key", mine / "witness.key")

    def verified() -> Facts | None:
        # The log is live: a copy may catch half of a record, or a record that is not witnessed yet.
        shutil.rmtree(mine / "audit", ignore_errors=True)
        shutil.copytree(router / "audit", mine / "audit")
        report = _verify(platform, mine)
        return report if report["ok"] and report["witnessedRecords"] else None

    try:
        return wait_for(f"a copy of {pod}'s log that verifies", verified, deadline_s=30)
    except DemoError:
        return _verify(platform, mine)


def _verify(platform: Platform, copy: Path) -> dict[str, Any]:
    keys = ("--key", str(copy / "log.key"), "--witness-key", str(copy / "witness.key"))
    result = platform.run("audit", "verify", str(copy / "audit"), *keys, "-o", "json")
    report: dict[str, Any] = json.loads(result.stdout)
    if report["ok"] != (result.returncode == 0):
        raise DemoError(f"`kars audit verify` ended with {result.returncode}")
    return report


def _flip(platform: Platform, pod: str, outsider: Path) -> tuple[str, bool]:
    mine = outsider / pod
    segment = max((mine / "audit").rglob("*.jsonl"), key=lambda file: file.stat().st_size)
    data = bytearray(segment.read_bytes())
    place = len(data) // 2
    while data[place] == ord("\n"):
        place += 1
    data[place] ^= 1
    segment.write_bytes(data)
    line = data[:place].count(b"\n") + 1
    found = _verify(platform, mine)["finding"] or {}
    return f"{segment.name}, line {line}", (found.get("file"), found.get("line")) == (segment.name, line)


def last_known_policy(still: Facts, bare: tuple[int, str]) -> Proof:
    """Without a controller the last policy holds; without any policy nothing passes."""
    outside = still["outside"]
    held = (
        still["models"] == 200
        and (outside["status"], outside["code"]) == (403, "policy_denied")
        and still["budget"]["status"] == 429
        and bare == (403, "no_policy_in_force")
    )
    return Proof(
        control="last known policy",
        attack="the controller is stopped; another router starts without any bundle",
        happened=f"goes on: models {still['models']}, other model {outside['status']} {outside['code']}, "
        f"budget {still['budget']['status']}; without a bundle: {bare[0]} {bare[1]}",
        held=held,
    )


def attempt(control: str, prove: Callable[[], Proof]) -> Proof:
    """Run one proof; what cannot be shown has not held."""
    try:
        return prove()
    except (DemoError, KeyError, OSError, ValueError) as error:
        return Proof(control=control, attack="see the control", happened=f"not shown: {error}", held=False)
