"""One campaign of attacks as one user: `python campaign.py <scratch directory>`; prints one JSON object.

Run by the tests as root and, dropped to an ordinary user, rootless. Standard library only.
"""

import dataclasses
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from kars_controller.platforms.base import (
    ROUTER_UID,
    AgentPlan,
    ContainerState,
    Enforcement,
    Isolation,
    PodPhase,
    PodStatus,
    ReadOnlyMount,
    ResourceLimits,
    SeccompProfile,
)
from kars_controller.platforms.local import doctor, status_codec
from kars_controller.platforms.local.isolation import syscalls

from tests.redteam.sandbox import pods

MIB = 1 << 20
CHAT_PORT = 18789
MEMORY = 96 * MIB
TMP = 8 * MIB
WORKSPACE = 32 * MIB


class Campaign:
    """Everything that one user tries, and what came of it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.pods = scratch / "pods"
        self.host = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0kars-redteam-{os.getpid()}")
        self.abstract.listen()
        self.credential = scratch / "leak" / "credential"
        self.credential.parent.mkdir()
        self.credential.write_text("sk-canary", encoding="ascii")
        self.credential.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(self.credential, ROUTER_UID, ROUTER_UID)
        self.seed = scratch / "seed"
        self.seed.mkdir()
        (self.seed / "seed.txt").write_text("seeded", encoding="ascii")
        (self.seed / "link").symlink_to("/etc/shadow")

    def run(self) -> dict[str, Any]:
        """Run all of it."""
        host = doctor.examine()
        if host.tier == "unusable":
            missing = "; ".join(
                f"{control.name}: {control.detail}" for control in host.controls if control.detail
            )
            return {"unusable": missing}
        return {
            "doctor": dataclasses.asdict(host),
            "strict": self.attack("strict", SeccompProfile.KARS_STRICT, ""),
            "default": self.attack("default", SeccompProfile.RUNTIME_DEFAULT, ""),
            "no_landlock": self.attack("bare", SeccompProfile.KARS_STRICT, "landlock"),
            "refused": self.require_landlock_without_it(),
            "neighbours": self.neighbours(),
            "hogs": {
                name: self.hog(name)
                for name in ("forks", "memory", "children", "tmp", "shm", "workspace", "ghosts", "processor")
            },
        }

    def attack(self, name: str, profile: SeccompProfile, fault: str) -> dict[str, Any]:
        """Put the attacker into a sandbox and read its report."""
        pod = pods.Pod(self.pods, name, self.attacker(name, profile), fault=fault)
        try:
            log = pod.wait_for_output("SERVING")
            report: dict[str, Any] = json.loads(log.split("REPORT ", 1)[1].splitlines()[0])
            report["status"] = status_codec.encode(pod.status())
            report["started_s"] = time.monotonic() - pod.started
            return report
        finally:
            pod.remove()

    def neighbours(self) -> dict[str, Any]:
        """Run two sandboxes at once on the same ports, and dial into both."""
        running = [pods.Pod(self.pods, name, self.attacker(name)) for name in ("left", "right")]
        try:
            reports = [
                json.loads(p.wait_for_output("SERVING").split("REPORT ", 1)[1].splitlines()[0])
                for p in running
            ]
            with socket.socket() as probe:
                host_door = probe.connect_ex(("127.0.0.1", 8443))
            return {
                "doors": [report["network"]["door"] for report in reports],
                "dialled": [pod.dial(CHAT_PORT).decode() for pod in running],
                "closed_port": running[0].dial(4242).decode(),
                "host_8443": os.strerror(host_door) if host_door else "OPEN",
            }
        finally:
            for pod in running:
                pod.remove()

    def require_landlock_without_it(self) -> dict[str, Any]:
        """Ask for Landlock where there is none."""
        agent = dataclasses.replace(
            self.attacker("strictly"), isolation=Isolation(landlock=Enforcement.REQUIRED)
        )
        pod = pods.Pod(self.pods, "strictly", agent, fault="landlock")
        try:
            status = pod.wait(lambda status: status.phase is PodPhase.FAILED)
            return {"status": status_codec.encode(status), "log": pod.log("agent")}
        finally:
            pod.remove()

    def hog(self, name: str) -> dict[str, Any]:
        """Let one hog loose and see what stops it."""
        agent = AgentPlan(
            argv=(pods.PYTHON, "/opt/hog.py", name),
            runtime=(ReadOnlyMount(source=pods.HERE / "hog.py", target="/opt/hog.py"),),
            limits=ResourceLimits(
                memory_bytes=MEMORY, cpu_millis=500, pids=64, workspace_bytes=WORKSPACE, tmp_bytes=TMP
            ),
        )
        pod = pods.Pod(self.pods, f"hog-{name}", agent)
        try:
            status = pod.wait(_ended)
            said = [line[4:] for line in pod.log("agent").splitlines() if line.startswith("HOG ")]
            return {
                "said": json.loads(said[-1]) if said else {},
                "reason": status.agent.last_reason,
                "exit_code": status.agent.exit_code,
                "workspace_mib": _disk_mib(pod.directory.workspace),
            }
        finally:
            pod.remove()

    def attacker(self, name: str, profile: SeccompProfile = SeccompProfile.KARS_STRICT) -> AgentPlan:
        """Describe a sandbox with the attacker in it."""
        targets = {
            "syscalls": syscalls.table(),
            "host_port": self.host.getsockname()[1],
            "abstract": f"kars-redteam-{os.getpid()}",
            "credential": str(self.credential),
            "host_file": str(self.seed / "seed.txt"),
            "host_pid": os.getpid(),
        }
        return AgentPlan(
            argv=(pods.PYTHON, "/sandbox/agent/attacker.py", str(CHAT_PORT)),
            env={"ATTACK_TARGETS": json.dumps(targets), "SANDBOX_NAME": name},
            code=(ReadOnlyMount(source=pods.HERE, target="/sandbox/agent"),),
            runtime=(ReadOnlyMount(source=self.credential.parent, target="/opt/leak"),),
            workspace_seed=self.seed,
            listen_ports=(CHAT_PORT,),
            limits=ResourceLimits(memory_bytes=MEMORY, workspace_bytes=WORKSPACE, tmp_bytes=TMP),
            isolation=Isolation(seccomp=profile),
        )


def _ended(status: PodStatus) -> bool:
    return bool(status.agent.last_reason) and status.agent.state is not ContainerState.RUNNING


def _disk_mib(directory: Path) -> float:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*")) / MIB


if __name__ == "__main__":
    print(json.dumps(Campaign(Path(sys.argv[1])).run()))
