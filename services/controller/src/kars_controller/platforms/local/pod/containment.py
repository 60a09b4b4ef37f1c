"""What of the wished-for containment this machine gives, decided once, before anything is started.

Turns a plan's isolation and limits into mechanisms, and says for each control whether it is in force. A
control that the plan requires and the machine lacks is refused here, before there is a process.
"""

import math
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass

from kars_controller.platforms.base import (
    DOOR_PORT,
    AgentPlan,
    ControlState,
    Enforcement,
    IsolationControl,
)
from kars_controller.platforms.local.isolation import cgroups, landlock, watchdog
from kars_controller.platforms.local.isolation.errors import IsolationError

_INIT_PROCESSES = 3
"""Ours inside the agent's user namespace: the network holder, PID 1, a shim while it lives."""


@dataclass(frozen=True, kw_only=True)
class Containment:
    """The mechanisms to use for one agent, and what to announce."""

    group: cgroups.Group
    watch: watchdog.Limits
    rlimits: Mapping[int, int]
    cpus: int | None
    landlock: bool
    controls: tuple[IsolationControl, ...]


def decide(agent: AgentPlan, *, group: cgroups.Group, quota_problem: str, rootless: bool) -> Containment:
    """Choose mechanisms for a plan.

    Args:
        agent: the plan.
        group: what cgroups gave.
        quota_problem: why the workspace is not a file system of its own; empty when it is.
        rootless: whether user namespaces stand in for root.

    Raises:
        IsolationError: `isolation_unavailable`, the plan requires what is missing.
    """
    limits = agent.limits
    by_watchdog = cgroups.MEMORY in group.missing
    by_affinity = cgroups.CPU in group.missing
    controls = (
        *_base_controls(agent, rootless=rootless),
        _landlock_control(),
        *_limit_controls(group, quota_problem),
    )
    _refuse_missing(agent, controls)
    rlimits = {resource.RLIMIT_NOFILE: 65536}
    if by_watchdog:
        rlimits[resource.RLIMIT_DATA] = limits.memory_bytes
    if cgroups.PIDS in group.missing:
        rlimits[resource.RLIMIT_NPROC] = limits.pids + _INIT_PROCESSES
    if quota_problem:
        rlimits[resource.RLIMIT_FSIZE] = limits.workspace_bytes
    return Containment(
        group=group,
        watch=watchdog.Limits(
            memory_bytes=limits.memory_bytes if by_watchdog else None,
            workspace_bytes=limits.workspace_bytes if quota_problem else None,
        ),
        rlimits=rlimits,
        cpus=max(1, math.ceil(limits.cpu_millis / 1000)) if by_affinity else None,
        landlock=landlock.abi() > 0,
        controls=controls,
    )


def landlock_rules(agent: AgentPlan, readable: tuple[str, ...]) -> landlock.Rules:
    """Return what the agent may still open, connect to and bind under Landlock."""
    return landlock.Rules(
        read=("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", *readable),
        # /proc is writable as a tree because agents set oom_score_adj; its files have their own rules.
        write=("/sandbox", "/tmp", "/var/tmp", "/run", "/dev", "/proc"),  # noqa: S108  # names inside the root
        connect_ports=(DOOR_PORT, *agent.listen_ports),
        bind_ports=agent.listen_ports,
    )


def _base_controls(agent: AgentPlan, *, rootless: bool) -> tuple[IsolationControl, ...]:
    users = (
        IsolationControl(
            name="user-separation",
            state=ControlState.DEGRADED,
            detail="agent and router are one host user and keep its groups; "
            "mount and pid namespaces alone keep them apart",
            remedy="run kars as root",
        )
        if rootless
        else _enforced("user-separation", "agent 1000, router 1001")
    )
    return (
        _enforced("namespaces", "mount, pid, ipc, uts, cgroup" + (", user" if rootless else "")),
        _enforced("network", "empty namespace, one door"),
        _enforced("capabilities", "none, and no way to gain one"),
        _enforced("read-only-root", "synthetic root"),
        _enforced("seccomp", agent.isolation.seccomp),
        users,
    )


def _landlock_control() -> IsolationControl:
    abi = landlock.abi()
    if abi >= landlock.FULL_ABI:
        return _enforced("landlock", f"ABI {abi}: files, TCP ports, signals, abstract sockets")
    remedy = "use a kernel of 6.12 or later with landlock in its lsm= list"
    if abi == 0:
        return IsolationControl(
            name="landlock", state=ControlState.ABSENT, detail="the kernel offers none", remedy=remedy
        )
    parts = "files, TCP ports" if abi >= 4 else "files only; the network namespace still holds"
    return IsolationControl(
        name="landlock", state=ControlState.DEGRADED, detail=f"ABI {abi}: {parts}", remedy=remedy
    )


def _limit_controls(group: cgroups.Group, quota_problem: str) -> tuple[IsolationControl, ...]:
    stand_ins = {
        cgroups.MEMORY: "PID 1 kills the sandbox when it sees an excess (every 50 ms)",
        cgroups.PIDS: "RLIMIT_NPROC counts per user namespace",
        cgroups.CPU: "bound to whole processors by affinity",
    }
    remedy = "run as root, or in a cgroup v2 subtree delegated with cpu, memory and pids"
    controls = [
        _enforced(name, f"cgroup v{group.version}")
        if name in group.directories
        else IsolationControl(
            name=name, state=ControlState.DEGRADED, detail=f"{group.missing[name]}; {stand_in}", remedy=remedy
        )
        for name, stand_in in stand_ins.items()
    ]
    if quota_problem:
        controls.append(
            IsolationControl(
                name="workspace",
                state=ControlState.DEGRADED,
                detail=f"{quota_problem}; PID 1 kills the sandbox when it sees an excess (every 100 ms)",
                remedy="run as root with loop devices and e2fsprogs",
            )
        )
    else:
        controls.append(_enforced("workspace", "a file system of its own size"))
    return tuple(controls)


def _refuse_missing(agent: AgentPlan, controls: tuple[IsolationControl, ...]) -> None:
    required: set[str] = set()
    if agent.isolation.landlock is Enforcement.REQUIRED:
        required.add("landlock")
    if agent.isolation.limits is Enforcement.REQUIRED:
        required |= {*cgroups.CONTROLLERS, "workspace"}
    for control in controls:
        if control.name in required and control.state is not ControlState.ENFORCED:
            raise IsolationError(
                "isolation_unavailable",
                f"the plan requires {control.name}, which is {control.state} here: "
                f"{control.detail}; {control.remedy}",
            )


def _enforced(name: str, detail: str) -> IsolationControl:
    return IsolationControl(name=name, state=ControlState.ENFORCED, detail=detail)


def rootless() -> bool:
    """Whether this process needs user namespaces to contain anything."""
    return os.geteuid() != 0
