"""A pod plan as the supervisor keeps it: no secrets, the router's mounts resolved, JSON in one file.

The contents of router files never enter it; a digest over them tells the supervisor when to restart the
router.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kars_controller.platforms.base import (
    AgentPlan,
    Enforcement,
    Isolation,
    PodPlan,
    ReadOnlyMount,
    ResourceLimits,
    SandboxKey,
    SeccompProfile,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """The router container, ready to run."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[ReadOnlyMount, ...]
    files_digest: str


@dataclass(frozen=True, kw_only=True)
class PodSpec:
    """All that the supervisor of one pod works from."""

    key: SandboxKey
    uid: str
    digest: str
    agent: AgentPlan
    router: RouterSpec
    suspended: bool
    termination_grace_s: float

    @property
    def agent_digest(self) -> str:
        """Changes when the agent has to be restarted."""
        return _digest(_plain(self.agent))

    @property
    def router_digest(self) -> str:
        """Changes when the router has to be restarted."""
        return _digest(_plain(self.router))


def from_plan(
    plan: PodPlan, router_argv: tuple[str, ...], router_mounts: tuple[ReadOnlyMount, ...]
) -> PodSpec:
    """Turn a plan into what the supervisor keeps."""
    files = {
        file.path: [file.mode, base64.b64encode(hashlib.sha256(file.content).digest()).decode()]
        for file in plan.router.files
        if file.restarts_router
    }
    router = RouterSpec(
        argv=plan.router.argv or router_argv,
        env=dict(plan.router.env),
        mounts=router_mounts,
        files_digest=_digest(files),
    )
    return PodSpec(
        key=plan.key,
        uid=plan.uid,
        digest=plan.digest,
        agent=plan.agent,
        router=router,
        suspended=plan.suspended,
        termination_grace_s=plan.termination_grace_s,
    )


def encode(spec: PodSpec) -> dict[str, Any]:
    """Return a spec as plain JSON values."""
    return _plain(spec)


def decode(plain: Mapping[str, Any]) -> PodSpec:
    """Return the spec that `encode` wrote.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    agent = dict(plain["agent"])
    agent["argv"] = tuple(agent["argv"])
    agent["code"] = _mounts(agent["code"])
    agent["runtime"] = _mounts(agent["runtime"])
    agent["workspace_seed"] = Path(agent["workspace_seed"]) if agent["workspace_seed"] else None
    agent["listen_ports"] = tuple(agent["listen_ports"])
    agent["limits"] = ResourceLimits(**agent["limits"])
    isolation = agent["isolation"]
    agent["isolation"] = Isolation(
        seccomp=SeccompProfile(isolation["seccomp"]),
        landlock=Enforcement(isolation["landlock"]),
        limits=Enforcement(isolation["limits"]),
    )
    router = plain["router"]
    return PodSpec(
        key=SandboxKey(*plain["key"]),
        uid=plain["uid"],
        digest=plain["digest"],
        agent=AgentPlan(**agent),
        router=RouterSpec(
            argv=tuple(router["argv"]),
            env=router["env"],
            mounts=_mounts(router["mounts"]),
            files_digest=router["files_digest"],
        ),
        suspended=plain["suspended"],
        termination_grace_s=plain["termination_grace_s"],
    )


def read(path: Path) -> PodSpec:
    """Read a spec from its file.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError: it is no spec.
    """
    return decode(json.loads(path.read_bytes()))


def _mounts(plain: list[dict[str, str]]) -> tuple[ReadOnlyMount, ...]:
    return tuple(ReadOnlyMount(source=Path(mount["source"]), target=mount["target"]) for mount in plain)


def _plain(value: "DataclassInstance") -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value), default=str))
    return plain


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
