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


def audit(platform: Platform, pods: list[str], traces: list[str], scratch: Path) -> Proof:
    """Every log verifies, holds every attack, and a flipped byte is found where it is."""
    logs = [platform.pod(pod) / "router" / "audit" for pod in pods]
    text = "".join(file.read_text(errors="replace") for log in logs for file in sorted(log.rglob("*.jsonl")))
    missing = [trace for trace in traces if trace not in text]
    verified = all(platform.run("audit", "verify", str(log)).returncode == 0 for log in logs)
    flipped, located = _flip(platform, logs[0], scratch)
    return Proof(
        control="audit",
        attack=f"offline verification; one byte of a copy flipped ({flipped})",
        happened=f"{'verifies' if verified else 'does NOT verify'}; "
        f"{len(traces) - len(missing)} of {len(traces)} "
        f"attacks recorded; the flip was {'found and located' if located else 'NOT located'}",
        held=verified and not missing and located,
    )


def _flip(platform: Platform, log: Path, scratch: Path) -> tuple[str, bool]:
    copy = scratch / "audit-copy"
    shutil.copytree(log, copy)
    segment = max(copy.rglob("*.jsonl"), key=lambda file: file.stat().st_size, default=None)
    if segment is None:
        return "there is no log", False
    data = bytearray(segment.read_bytes())
    place = len(data) // 2
    while data[place] == ord("\n"):
        place += 1
    data[place] ^= 1
    segment.write_bytes(data)
    line = data[:place].count(b"\n") + 1
    result = platform.run("audit", "verify", str(copy))
    said = result.stdout + result.stderr
    return f"{segment.name} line {line}", result.returncode == 2 and segment.name in said and str(
        line
    ) in said


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
