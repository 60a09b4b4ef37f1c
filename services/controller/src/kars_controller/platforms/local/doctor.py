"""`kars doctor` for this machine: what it gives to sandboxes, and what to do about the rest.

Also runs without a controller: `python -m kars_controller.platforms.local.doctor` prints JSON. Each
question is asked by trying, in a child process that is thrown away, never by looking at versions.
"""

import asyncio
import dataclasses
import json
import os
import platform
import sys

from kars_controller.platforms.base import AgentPlan, ControlState, HostReport, IsolationControl
from kars_controller.platforms.local.isolation import probing, quota
from kars_controller.platforms.local.pod import containment

_PLATFORM = "local"
_TIMEOUT_S = 30.0


def examine() -> HostReport:
    """Try everything and report. Blocking; forks, so run it in a process without threads."""
    attempts = (
        (
            "namespaces",
            probing.try_namespaces,
            "allow user namespaces, or run kars as root with CAP_SYS_ADMIN",
        ),
        ("network-door", probing.try_door, "allow network namespaces for this user"),
        ("mount-tree", probing.try_mounts, "use a kernel of 5.12 or later that lets this user mount proc"),
        ("seccomp", probing.try_seccomp, "use a kernel with CONFIG_SECCOMP_FILTER"),
    )
    controls = [_needed(name, attempt(), remedy) for name, attempt, remedy in attempts]
    usable = all(control.state is ControlState.ENFORCED for control in controls)
    group = probing.try_cgroup()
    decided = containment.decide(
        AgentPlan(argv=("true",)),
        group=group,
        quota_problem=quota.unavailable() or probing.try_quota(),
        rootless=containment.rootless(),
    )
    named = {control.name for control in controls}
    controls += [control for control in decided.controls if control.name not in named]
    degraded = any(control.state is not ControlState.ENFORCED for control in controls)
    tier = "unusable" if not usable else "degraded" if degraded else "full"
    return HostReport(
        platform=_PLATFORM,
        kernel=platform.release(),
        root=os.geteuid() == 0,
        tier=tier,
        controls=tuple(controls),
    )


async def report() -> HostReport:
    """Examine in a process of its own: the caller has threads, and the attempts fork.

    Raises:
        RuntimeError: the examination itself failed.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, error = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        raise
    if child.returncode != 0:
        raise RuntimeError(f"host examination failed: {error.decode(errors='replace')[-400:]}")
    plain = json.loads(out)
    controls = tuple(
        IsolationControl(**(control | {"state": ControlState(control["state"])}))
        for control in plain["controls"]
    )
    return HostReport(**(plain | {"controls": controls}))


def _needed(name: str, problem: str, remedy: str) -> IsolationControl:
    if problem:
        return IsolationControl(name=name, state=ControlState.ABSENT, detail=problem, remedy=remedy)
    return IsolationControl(name=name, state=ControlState.ENFORCED)


def main() -> None:
    """Print the report as JSON."""
    sys.stdout.write(json.dumps(dataclasses.asdict(examine()), indent=1) + "\n")


if __name__ == "__main__":
    main()
