"""Which plans this platform refuses before anything is written: bad names, mounts that open the host."""

import re
from pathlib import Path

from kars_common.errors import FieldViolation, InvalidInputError

from kars_controller.platforms.base import PodPlan, ReadOnlyMount, SandboxKey

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_KERNEL = tuple(Path(path) for path in ("/proc", "/sys", "/dev", "/run"))
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
    """Refuse what no machine should run.

    Raises:
        InvalidInputError: `name_invalid`, `mount_missing` or `mount_refused`.
    """
    check_key(plan.key)
    for mount in (*plan.agent.code, *plan.agent.runtime):
        _check_mount(mount, home.resolve())


def _check_mount(mount: ReadOnlyMount, home: Path) -> None:
    if not mount.source.exists():
        raise InvalidInputError("mount_missing", f"{mount.source} does not exist")
    source = mount.source.resolve()
    if _touches(source, home):
        _refuse(mount, "it holds kars' own state, with credentials")
    if any(_within(source, kernel) for kernel in _KERNEL):
        _refuse(mount, "it is the kernel's, or holds other services' sockets")
    target = Path(mount.target)
    if target == Path("/") or any(_within(target, reserved) for reserved in _RESERVED_TARGETS):
        _refuse(mount, f"{mount.target} is the sandbox's own")


def _refuse(mount: ReadOnlyMount, why: str) -> None:
    raise InvalidInputError(
        "mount_refused",
        f"{mount.source} cannot be mounted: {why}",
        violations=[FieldViolation(mount.target, why)],
    )


def _within(path: Path, directory: Path) -> bool:
    return path == directory or directory in path.parents


def _touches(source: Path, home: Path) -> bool:
    return _within(source, home) or _within(home, source)
