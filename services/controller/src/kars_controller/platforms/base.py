"""The contract between the reconciler and a platform: plans in, observations out.

Plain frozen values and one Protocol. Standard library only, because the pod supervisor reads plans too.
Refuses to know resources, gRPC, and how a platform does what it is asked.
"""

import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

AGENT_UID = 1000
ROUTER_UID = 1001
DOOR_PORT = 8443
"""The one port that answers inside a sandbox: the router."""

AGENT_HOME = "/sandbox"
AGENT_CODE = "/sandbox/agent"
"""Where agent code is bound, read-only, inside the sandbox."""

ROUTER_STATE_DIR = "/var/lib/kars-router"
"""The router's state directory as the router sees it; `RouterFile.path` is relative to it."""


class SandboxKey(NamedTuple):
    """Names one sandbox on one platform."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Enforcement(StrEnum):
    """What to do when this machine cannot give a control in full."""

    REQUIRED = "required"
    """Refuse to start the container, with the reason."""
    BEST_EFFORT = "best-effort"
    """Start it, and say in `PodStatus.isolation` what is degraded or absent."""


class SeccompProfile(StrEnum):
    """The system-call filters a platform knows by name."""

    KARS_STRICT = "kars-strict"
    """Allow-list: what is not named is refused."""
    RUNTIME_DEFAULT = "RuntimeDefault"
    """Deny-list: what a container never needs is refused."""


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """How strictly the agent must be contained.

    Namespaces, user id, capabilities, read-only root and seccomp are never optional. Landlock and the
    resource limits depend on kernel and delegation, so the plan says what to do without them.
    """

    seccomp: SeccompProfile = SeccompProfile.KARS_STRICT
    landlock: Enforcement = Enforcement.BEST_EFFORT
    limits: Enforcement = Enforcement.BEST_EFFORT


@dataclass(frozen=True, kw_only=True)
class ResourceLimits:
    """Ceilings for the agent container as a whole. All are positive."""

    memory_bytes: int = 4 << 30
    cpu_millis: int = 2000
    pids: int = 512
    workspace_bytes: int = 2 << 30
    tmp_bytes: int = 256 << 20
    """Each of /tmp, /var/tmp, /run and /dev/shm; they count as memory too."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limit {name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class ReadOnlyMount:
    """One directory or file of the host, visible read-only in a container."""

    source: Path
    target: str

    def __post_init__(self) -> None:
        if (
            not self.source.is_absolute()
            or not self.target.startswith("/")
            or ".." in Path(self.target).parts
        ):
            raise ValueError(f"mount {self.source} on {self.target} needs absolute paths without '..'")


@dataclass(frozen=True, kw_only=True)
class AgentPlan:
    """The agent container: what runs, on which files, in which limits."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment, except HOME, LANG, TMPDIR and USER, which the platform sets."""
    code: tuple[ReadOnlyMount, ...] = ()
    runtime: tuple[ReadOnlyMount, ...] = ()
    """Interpreter and libraries; see `local.python_runtime.python_mounts`."""
    workspace_seed: Path | None = None
    """A directory copied into the workspace when the sandbox is first created; never again."""
    listen_ports: tuple[int, ...] = ()
    """Ports that the agent may bind on its loop-back, reachable through `Platform.dial`."""
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    isolation: Isolation = field(default_factory=Isolation)
    restart_completed: bool = False
    """Start it again after it exited with 0 (a crash is always restarted, with back-off)."""

    def __post_init__(self) -> None:
        if not self.argv:
            raise ValueError("agent needs a command")


@dataclass(frozen=True, kw_only=True)
class RouterFile:
    """A file placed in the router's state directory, readable by the router alone."""

    path: str
    content: bytes = field(repr=False)
    mode: int = 0o600
    restarts_router: bool = True
    """False for what the router only reads at first start (a join token)."""

    def __post_init__(self) -> None:
        if self.path.startswith("/") or ".." in Path(self.path).parts or not self.path:
            raise ValueError(f"router file path {self.path!r} must stay in the state directory")


@dataclass(frozen=True, kw_only=True)
class RouterPlan:
    """The router container. The platform adds KARS_ROUTER_DOOR_FD and _STATE_DIR to its environment."""

    argv: tuple[str, ...] = ()
    """Empty: `python -m kars_router` with the controller's own interpreter."""
    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[RouterFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PodPlan:
    """All that a platform needs to run one sandbox. Equal digests mean: nothing to do."""

    key: SandboxKey
    uid: str
    """Of the resource. A pod of another uid under the same key is deleted first, with its workspace."""
    digest: str
    """Of everything below that should restart something when it changes. Opaque to the platform."""
    agent: AgentPlan
    router: RouterPlan
    suspended: bool = False
    termination_grace_s: float = 30.0


class PodPhase(StrEnum):
    """The pod as a whole, in Kubernetes' words plus `Suspended`."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    TERMINATING = "Terminating"


class ContainerState(StrEnum):
    """The three states a container can be in."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


@dataclass(frozen=True, kw_only=True)
class ContainerStatus:
    """One container, as last observed."""

    name: str
    state: ContainerState
    ready: bool = False
    reason: str = ""
    """CamelCase, as in Kubernetes: RouterNotReady, CrashLoopBackOff, IsolationFailed, StartError, Completed,
    Error, OOMKilled, WorkspaceFull, Suspended."""
    message: str = ""
    last_reason: str = ""
    """Why the last run that ended did so; stays while the container waits or runs again."""
    exit_code: int | None = None
    """Of the last run that ended; 128 + n after signal n."""
    restart_count: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ControlState(StrEnum):
    """How much of one isolation control is in force."""

    ENFORCED = "enforced"
    DEGRADED = "degraded"
    ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class IsolationControl:
    """One control, what this machine gives of it, and what would give all of it."""

    name: str
    state: ControlState
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class PodStatus:
    """One pod, as last observed."""

    key: SandboxKey
    uid: str
    plan_digest: str
    phase: PodPhase
    agent: ContainerStatus
    router: ContainerStatus
    isolation: tuple[IsolationControl, ...] = ()

    @property
    def degraded(self) -> tuple[IsolationControl, ...]:
        """The controls that are not fully in force, to be announced."""
        return tuple(control for control in self.isolation if control.state is not ControlState.ENFORCED)


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """What a machine can give to sandboxes."""

    platform: str
    kernel: str
    """The kernel's release."""
    root: bool
    """Whether sandboxes are started as root."""
    tier: str
    """`full`, `degraded` (runs, with announced gaps) or `unusable`."""
    controls: tuple[IsolationControl, ...]


class Platform(Protocol):
    """Applies plans and reports what it observes. Methods raise `KarsError` subclasses with a reason."""

    async def apply(self, plan: PodPlan) -> None:
        """Make the pod be as planned. Idempotent; returns when accepted, not when running.

        What this machine cannot give a plan shows in `observe`: phase Failed, reason IsolationFailed.

        Raises:
            InvalidInputError: the plan cannot be run on any machine (`mount_refused`, `mount_missing`).
            UnavailableError: the pod's supervisor did not start or answer (`supervisor_unavailable`).
        """
        ...

    async def delete(self, key: SandboxKey) -> None:
        """Stop the pod and remove all it kept, workspace included. Idempotent; returns when it is gone."""
        ...

    async def observe(self, key: SandboxKey) -> PodStatus | None:
        """Say how the pod is; None when nothing runs under this key (the plan must be applied again)."""
        ...

    def changes(self) -> AsyncIterator[SandboxKey]:
        """Yield the key of each pod whose observation changed, beginning with those already running."""
        ...

    def logs(
        self, key: SandboxKey, container: str, *, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """Yield log chunks of `agent` or `router`: the last `tail` lines (None: all), then new ones.

        Raises:
            NotFoundError: no such sandbox or container (`sandbox_not_found`, `container_unknown`).
        """
        ...

    async def dial(self, key: SandboxKey, port: int) -> socket.socket:
        """Connect to a port on the sandbox's own loop-back; the caller owns the non-blocking socket.

        Raises:
            NotFoundError: nothing runs under this key (`sandbox_not_found`).
            UnavailableError: nothing listens on that port (`port_closed`).
        """
        ...

    async def host_report(self) -> HostReport:
        """Say what this machine can give, control by control, with remedies in words."""
        ...

    async def close(self) -> None:
        """Let go of the pods without stopping them."""
        ...
