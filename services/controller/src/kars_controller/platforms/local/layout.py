"""Where one pod keeps its files on this machine. Names only; makes and reads nothing."""

from dataclasses import dataclass
from pathlib import Path

from kars_controller.platforms.base import SandboxKey

AGENT = "agent"
ROUTER = "router"
CONTAINERS = (AGENT, ROUTER)


@dataclass(frozen=True)
class PodDirectory:
    """The files of one pod: `<home>/pods/<namespace>/<name>/`."""

    path: Path

    @classmethod
    def of(cls, pods: Path, key: SandboxKey) -> "PodDirectory":
        """Name the directory of a sandbox."""
        return cls(pods / key.namespace / key.name)

    @property
    def key(self) -> SandboxKey:
        """The sandbox that this directory belongs to."""
        return SandboxKey(self.path.parent.name, self.path.name)

    @property
    def spec(self) -> Path:
        """The plan as the supervisor reads it."""
        return self.path / "spec.json"

    @property
    def lock(self) -> Path:
        """Held by the one live supervisor."""
        return self.path / "lock"

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.path / "control.sock"

    @property
    def workspace(self) -> Path:
        """The agent's files as the host sees them."""
        return self.path / "workspace"

    @property
    def workspace_image(self) -> Path:
        """The file system that bounds the workspace, where there is one."""
        return self.path / "workspace.img"

    @property
    def seeded(self) -> Path:
        """Exists once the workspace got its first content."""
        return self.path / "workspace.seeded"

    @property
    def groups(self) -> Path:
        """Names the cgroup directories in use, so that they are removed even after a kill."""
        return self.path / "cgroups.json"

    @property
    def router_state(self) -> Path:
        """The router's state directory as the host sees it."""
        return self.path / "router"

    @property
    def logs(self) -> Path:
        """The directory of all logs of the pod."""
        return self.path / "logs"

    def log(self, container: str) -> Path:
        """Name a container's current log file; older ones end in `.1`, `.2`, ..."""
        return self.logs / f"{container}.log"
