"""Building the root that a contained process sees: synthetic, small, and read-only but for what is named.

Called as PID 1 of new mount and pid namespaces, before any privilege is dropped. Order: private
propagation, an empty tmpfs, host system directories, synthetic /etc, /dev, scratch space, /proc, the
caller's binds, pivot, seal. Refuses to know what the binds are for.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from kars_controller.platforms.local.isolation import mounts
from kars_controller.platforms.local.isolation.errors import IsolationError

_STAGE = "/tmp"  # noqa: S108  # any directory that exists everywhere: covered in our own mount namespace only
_ROOT_BYTES = 1 << 20
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_HOST_ETC = (
    "/etc/ld.so.cache",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/alternatives",
    "/etc/mime.types",
    "/etc/localtime",
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_SCRATCH = ("/tmp", "/var/tmp", "/run", "/dev/shm")  # noqa: S108  # names inside the new root
_PROC_HIDDEN = ("kcore", "keys", "key-users", "timer_list", "latency_stats", "sched_debug", "sysrq-trigger")
_PROC_READ_ONLY = ("sys", "irq", "bus", "fs", "acpi", "scsi", "driver")
_READ_ONLY = mounts.RDONLY | mounts.NOSUID | mounts.NODEV


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A host directory or file and where it appears."""

    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Root:
    """What a contained process will find at /."""

    etc: Mapping[str, str]
    """Files of /etc, by name, with their text."""
    read_only: tuple[Bind, ...] = ()
    read_write: tuple[Bind, ...] = ()
    scratch_bytes: int = 64 << 20


def build(root: Root) -> None:
    """Replace the caller's root by a new one and seal it.

    Raises:
        IsolationError: `root_failed` or `mount_target_refused`; nothing may be run then.
    """
    previous = os.umask(0o022)
    try:
        _build(root)
    except OSError as error:
        raise IsolationError("root_failed", f"cannot build the root: {error}") from error
    finally:
        os.umask(previous)


def _build(root: Root) -> None:
    mounts.stop_propagation()
    # Sources are cloned before the stage covers /tmp: some of them may lie below it.
    writable = _clone_all(root.read_write, mounts.NOSUID | mounts.NODEV)
    readable = _clone_all(root.read_only, _READ_ONLY)
    mounts.filesystem("tmpfs", _STAGE, mounts.NOSUID | mounts.NODEV, f"mode=0755,size={_ROOT_BYTES}")
    stage = os.open(_STAGE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _system(stage)
    _etc(stage, root.etc)
    _dev(stage)
    _scratch(stage, root)
    _proc(stage)
    # Writable first: a read-only bind may lie inside the workspace. Shallow before deep, for the same reason.
    for target, tree, is_directory in writable + readable:
        mounts.attach(tree, mounts.place_for(stage, target, directory=is_directory))
    mounts.pivot_to(stage)
    os.close(stage)
    mounts.seal("/", mounts.NOSUID | mounts.NODEV)


def _clone_all(binds: tuple[Bind, ...], attributes: int) -> list[tuple[str, int, bool]]:
    return [
        (bind.target, mounts.clone_tree(bind.source, attributes), os.path.isdir(bind.source))
        for bind in sorted(binds, key=lambda bind: bind.target)
    ]


def _system(stage: int) -> None:
    for path in _SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), path[1:], dir_fd=stage)
        elif os.path.isdir(path):
            _bind(stage, path, path, _READ_ONLY)


def _etc(stage: int, files: Mapping[str, str]) -> None:
    os.mkdir("etc", dir_fd=stage)
    for path in _HOST_ETC:
        if os.path.exists(path):
            _bind(stage, path, path, _READ_ONLY)
    for name, text in files.items():
        descriptor = os.open(f"etc/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=stage)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def _dev(stage: int) -> None:
    os.mkdir("dev", dir_fd=stage)
    mounts.filesystem("tmpfs", f"{_STAGE}/dev", mounts.NOSUID | mounts.NOEXEC, "mode=0755,size=64k")
    for name in _DEVICES:
        with contextlib.suppress(FileNotFoundError):  # a minimal host may lack /dev/tty
            _bind(stage, f"/dev/{name}", f"/dev/{name}", mounts.NOSUID | mounts.NOEXEC)
    for name, goal in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{goal}", f"dev/{name}", dir_fd=stage)
    os.mkdir("dev/pts", dir_fd=stage)
    options = "newinstance,ptmxmode=0666,mode=0620"
    mounts.filesystem("devpts", f"{_STAGE}/dev/pts", mounts.NOSUID | mounts.NOEXEC, options)
    os.symlink("pts/ptmx", "dev/ptmx", dir_fd=stage)
    os.mkdir("dev/shm", dir_fd=stage)
    os.mkdir("dev/mqueue", dir_fd=stage)


def _scratch(stage: int, root: Root) -> None:
    for path in _SCRATCH:
        if not os.path.isdir(_STAGE + path):
            os.close(mounts.place_for(stage, path, directory=True))
        no_exec = mounts.NOEXEC if path == "/dev/shm" else 0  # noqa: S108
        options = f"mode=1777,size={root.scratch_bytes},nr_inodes=65536"
        mounts.filesystem("tmpfs", _STAGE + path, mounts.NOSUID | mounts.NODEV | no_exec, options)
    mounts.seal(f"{_STAGE}/dev", mounts.NOSUID | mounts.NOEXEC)


def _proc(stage: int) -> None:
    os.mkdir("proc", dir_fd=stage)
    proc = f"{_STAGE}/proc"
    mounts.filesystem("proc", proc, mounts.NOSUID | mounts.NODEV | mounts.NOEXEC)
    for name in _PROC_READ_ONLY:
        if os.path.isdir(f"{proc}/{name}"):
            _bind(stage, f"{proc}/{name}", f"/proc/{name}", _READ_ONLY | mounts.NOEXEC)
    for name in _PROC_HIDDEN:
        if os.path.exists(f"{proc}/{name}"):
            _cover(stage, f"/proc/{name}")


def _cover(stage: int, target: str) -> None:
    place = os.open(target[1:], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stage)
    mounts.attach(mounts.clone_tree("/dev/null", mounts.RDONLY | mounts.NOSUID | mounts.NOEXEC), place)


def _bind(stage: int, source: str, target: str, attributes: int) -> None:
    tree = mounts.clone_tree(source, attributes)
    mounts.attach(tree, mounts.place_for(stage, target, directory=os.path.isdir(source)))
