"""Resource ceilings for a whole container: cgroup v2 where the host has it, else the v1 controllers.

`create` makes what it can and says what it could not, control by control. It refuses to know what a
missing control means for the caller. Version 2 groups are made below the topmost group that the caller
may write to (delegation), so that an ordinary user gets limits where the host's service manager
delegates them.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MEMORY, PIDS, CPU = "memory", "pids", "cpu"
CONTROLLERS = (MEMORY, PIDS, CPU)
MOUNT = Path("/sys/fs/cgroup")
NAME_PREFIX = "kars-"
_CPU_PERIOD_US = 100_000
_CPU_MIN_QUOTA_US = 1_000
_EMPTY_TIMEOUT_S = 2.0
_EMPTY_PAUSE_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The limits of one group."""

    memory_bytes: int
    pids: int
    cpu_millis: int

    @property
    def cpu_quota_us(self) -> int:
        """CPU time allowed in each period."""
        return max(_CPU_MIN_QUOTA_US, self.cpu_millis * _CPU_PERIOD_US // 1000)


@dataclass
class Group:
    """One group: a directory a controller in v1, one directory in v2."""

    directories: Mapping[str, Path] = field(default_factory=dict)
    """By controller. In v2 all values are the same directory."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Controllers that this group does not have, with the reason."""
    version: int = 0

    def add(self, pid: int) -> None:
        """Put a process into the group.

        Raises:
            OSError: the kernel refused; the process must not be run.
        """
        for directory in self._unique():
            _write(directory / "cgroup.procs", str(pid))

    def oom_kills(self) -> int:
        """Count the processes that the kernel killed here for want of memory."""
        directory = self.directories.get(MEMORY)
        if directory is None:
            return 0
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError):
            for line in (directory / name).read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0

    def kill(self) -> None:
        """Kill every process in the group."""
        for directory in self._unique():
            with contextlib.suppress(OSError):
                for pid in (directory / "cgroup.procs").read_text(encoding="ascii").split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> bool:
        """Remove the group if it is empty, and say whether it is gone."""
        for directory in self._unique():
            with contextlib.suppress(OSError):
                directory.rmdir()
        return not any(directory.exists() for directory in self._unique())

    def _unique(self) -> set[Path]:
        return set(self.directories.values())


def create(name: str, ceilings: Ceilings, *, mount: Path = MOUNT, membership: str | None = None) -> Group:
    """Make (or take over) a group by name, with limits set before anything is in it.

    Args:
        name: one path component.
        ceilings: the limits.
        mount: where cgroups are mounted.
        membership: the text of /proc/self/cgroup; read when None.
    """
    own = _memberships(_own_membership() if membership is None else membership)
    if (mount / "cgroup.controllers").exists():
        return _create_v2(name, ceilings, mount, own.get("", "/"))
    return _create_v1(name, ceilings, mount, own)


def remove_leftover(path: str, *, mount: Path = MOUNT) -> None:
    """Remove a dead supervisor's group by its path; anything that is no group of ours is left alone.

    Its processes were killed with the supervisor; the group is waited for until the last of them is gone.
    """
    directory = Path(path)
    if mount in directory.parents and directory.name.startswith(NAME_PREFIX) and ".." not in directory.parts:
        deadline = time.monotonic() + _EMPTY_TIMEOUT_S
        while not _rmdir(directory) and time.monotonic() < deadline:
            time.sleep(_EMPTY_PAUSE_S)


def sweep(*, mount: Path = MOUNT, membership: str | None = None) -> None:
    """Remove the empty groups, where `create` makes them, whose names end in a pid that is no more.

    For supervisors that were killed and whose pod directories, which would tell, are gone too.
    """
    own = _memberships(_own_membership() if membership is None else membership)
    for base in _bases(mount, own):
        for directory in base.glob(f"{NAME_PREFIX}*-*"):
            pid = directory.name.rpartition("-")[2]
            if pid.isdecimal() and not Path("/proc", pid).exists():
                _rmdir(directory)


def _bases(mount: Path, own: Mapping[str, str]) -> set[Path]:
    if (mount / "cgroup.controllers").exists():
        base = _delegated_base(mount, own.get("", "/"))
        return {base} if base is not None else set()
    return {mount / name / own[name].strip("/") for name in CONTROLLERS if name in own}


def _rmdir(directory: Path) -> bool:
    """Remove an empty group; False where it is still in use."""
    try:
        directory.rmdir()
    except OSError as error:
        return error.errno != errno.EBUSY
    return True


def _own_membership() -> str:
    return Path("/proc/self/cgroup").read_text(encoding="ascii")


def _memberships(text: str) -> dict[str, str]:
    own: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    return own


def _create_v1(name: str, ceilings: Ceilings, mount: Path, own: Mapping[str, str]) -> Group:
    settings = {
        MEMORY: (("memory.limit_in_bytes", ceilings.memory_bytes),),
        PIDS: (("pids.max", ceilings.pids),),
        CPU: (("cpu.cfs_period_us", _CPU_PERIOD_US), ("cpu.cfs_quota_us", ceilings.cpu_quota_us)),
    }
    directories: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for controller, values in settings.items():
        if controller not in own or not (mount / controller).is_dir():
            missing[controller] = f"no cgroup v1 {controller} controller is mounted"
            continue
        directory = mount / controller / own[controller].strip("/") / name
        try:
            directory.mkdir(exist_ok=True)
            for key, value in values:
                _write(directory / key, str(value))
        except OSError as error:
            missing[controller] = f"cgroup v1 {controller}: {error.strerror}"
            continue
        if controller == MEMORY:
            _no_swap_v1(directory, ceilings.memory_bytes)
        directories[controller] = directory
    return Group(directories, missing, version=1)


def _no_swap_v1(directory: Path, memory_bytes: int) -> None:
    # Swap accounting may be compiled out; then swappiness 0 is all there is.
    for key, value in (("memory.memsw.limit_in_bytes", memory_bytes), ("memory.swappiness", 0)):
        with contextlib.suppress(OSError):
            _write(directory / key, str(value))


def _create_v2(name: str, ceilings: Ceilings, mount: Path, own: str) -> Group:
    base = _delegated_base(mount, own)
    if base is None:
        return Group(
            {}, dict.fromkeys(CONTROLLERS, "no cgroup v2 subtree is delegated to this user"), version=2
        )
    offered = set((base / "cgroup.controllers").read_text(encoding="ascii").split())
    with contextlib.suppress(OSError):  # what it did not enable shows below, controller by controller
        _write(base / "cgroup.subtree_control", " ".join(f"+{c}" for c in CONTROLLERS if c in offered))
    directory = base / name
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        return Group({}, dict.fromkeys(CONTROLLERS, f"cgroup v2 {base}: {error.strerror}"), version=2)
    settings = {
        MEMORY: (("memory.max", str(ceilings.memory_bytes)), ("memory.oom.group", "1")),
        PIDS: (("pids.max", str(ceilings.pids)),),
        CPU: (("cpu.max", f"{ceilings.cpu_quota_us} {_CPU_PERIOD_US}"),),
    }
    directories: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for controller, values in settings.items():
        try:
            for key, text in values:
                _write(directory / key, text)
            directories[controller] = directory
        except OSError as error:
            missing[controller] = f"cgroup v2 {controller} is not enabled below {base}: {error.strerror}"
    if MEMORY in directories:
        with contextlib.suppress(OSError):  # absent when the kernel has no swap accounting
            _write(directory / "memory.swap.max", "0")
    if not directories:
        directory.rmdir()
    return Group(directories, missing, version=2)


def _delegated_base(mount: Path, own: str) -> Path | None:
    """Find the topmost group from our own upwards where we may make groups and move processes."""
    candidate, found = mount / own.strip("/"), None
    while candidate == mount or mount in candidate.parents:
        writable = os.access(candidate, os.W_OK) and os.access(candidate / "cgroup.procs", os.W_OK)
        if not writable or not (candidate / "cgroup.controllers").exists():
            break
        found = candidate
        candidate = candidate.parent
    return found


def _write(path: Path, text: str) -> None:
    # No O_CREAT: a key that the kernel does not have must fail, also where a directory tree stands in for it.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
