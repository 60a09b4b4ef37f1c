"""Which plans this platform refuses before anything is written: bad names, mounts that open the host."""

import contextlib
import os
import re
import stat
from pathlib import Path

from kars_common.errors import FieldViolation, InvalidInputError

from kars_controller.platforms.base import AGENT_HOME, PodPlan, ReadOnlyMount, SandboxKey

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_KERNEL = tuple(Path(path) for path in ("/proc", "/sys", "/dev", "/run"))
_SETTINGS = tuple(Path(path) for path in ("/etc", "/boot"))
_EVERYBODYS = frozenset(Path(path) for path in ("/", "/home", "/root", "/var"))
_KEYS = (".ssh", ".gnupg", ".aws/credentials", ".azure", ".kube/config", ".docker/config.json", ".netrc")
_KEY_FOLDERS = frozenset(name.partition("/")[0] for name in _KEYS)
_RESERVED_TARGETS = tuple(Path(path) for path in ("/proc", "/sys", "/dev", "/etc"))


def check_key(key: SandboxKey) -> None:
    """Refuse names that are no DNS labels: they become paths and host names.

    Raises:
        InvalidInputError: `name_invalid`.
    """
    for part in key:
        if not _LABEL.fullmatch(part):
            raise InvalidInputError("name_invalid", f"{part!r} is no DNS label")


def check_plan(plan: PodPlan, home: Path) -> None:
    """Refuse what no machine should run. Blocking: it looks at every file of the agent's code.

    Raises:
        InvalidInputError: `name_invalid`, `mount_missing` or `mount_refused`.
    """
    check_key(plan.key)
    for mount in (*plan.agent.code, *plan.agent.runtime):
        _check_source(mount.source, mount.target, home.resolve())
        _check_target(mount)
    for code in plan.agent.code:
        _check_credentials(code.source, code.target)
        _check_endpoints(code.source, code.target)
    if plan.agent.workspace_seed is not None:
        # Copied by whoever runs kars, with its rights: what the agent could never open would be handed to it.
        _check_source(plan.agent.workspace_seed, AGENT_HOME, home.resolve())
        _check_credentials(plan.agent.workspace_seed, AGENT_HOME)


def _check_source(given: Path, target: str, home: Path) -> None:
    if not given.exists():
        raise InvalidInputError("mount_missing", f"{given} does not exist")
    source = given.resolve()
    if _touches(source, home):
        _refuse(given, target, "it holds kars' own state, with credentials")
    if not source.is_dir() and not source.is_file():
        _refuse(given, target, "it is neither a folder nor a plain file")
    if any(_within(source, kernel) for kernel in _KERNEL):
        _refuse(given, target, "it is the kernel's, or holds other services' sockets")


def _check_credentials(given: Path, target: str) -> None:
    """Refuse the machine's settings, and folders where people and their tools keep keys."""
    source = given.resolve()
    if source in _EVERYBODYS or any(_within(source, place) for place in _SETTINGS):
        _refuse(given, target, "it holds the machine's settings or everybody's files")
    found = [name for name in _KEYS if (source / name).exists()]
    found += [name for name in source.parts if name in _KEY_FOLDERS]
    if found:
        _refuse(given, target, f"it holds credentials ({found[0]})")


def _check_endpoints(given: Path, target: str) -> None:
    """Refuse sockets, pipes and devices: a read-only mount lets one talk through them to who made them."""
    for folder, _, names in os.walk(given):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(os.path.join(folder, name)).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                    _refuse(given, target, f"it holds a socket, a pipe or a device ({name})")


def _check_target(mount: ReadOnlyMount) -> None:
    target = Path(mount.target)
    if target == Path("/") or any(_within(target, reserved) for reserved in _RESERVED_TARGETS):
        _refuse(mount.source, mount.target, f"{mount.target} is the sandbox's own")


def _refuse(source: Path, target: str, why: str) -> None:
    raise InvalidInputError(
        "mount_refused",
        f"{source} cannot be given to an agent: {why}",
        violations=[FieldViolation(target, why)],
    )


def _within(path: Path, directory: Path) -> bool:
    return path == directory or directory in path.parents


def _touches(source: Path, home: Path) -> bool:
    return _within(source, home) or _within(home, source)
