"""Trying what this machine allows, each attempt in a fork that is thrown away. Answers a reason or "".

For a process without threads: it forks.
"""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from kars_controller.platforms.local.isolation import (
    cgroups,
    door,
    namespaces,
    privileges,
    quota,
    rootfs,
)
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.isolation.seccomp import compiling, installing

_UID = 1000
_TRIAL = cgroups.Ceilings(memory_bytes=64 << 20, pids=16, cpu_millis=500)
_MAX_REASON = 500


def try_namespaces() -> str:
    """Try to leave the host's namespaces."""
    return _in_fork(_leave)


def try_door() -> str:
    """Try to make an empty network namespace with a listening socket in it."""
    return _in_fork(_make_door)


def try_mounts() -> str:
    """Try to build a sandbox root."""
    return _in_fork(_make_root)


def try_seccomp() -> str:
    """Try to install the strict filter."""
    return _in_fork(_filter)


def try_cgroup() -> cgroups.Group:
    """Try to make a limited group; it is gone again when this returns."""
    group = cgroups.create(f"kars-doctor-{os.getpid()}", _TRIAL)
    group.remove()
    return group


def try_quota() -> str:
    """Try to mount a file system of a size."""
    with tempfile.TemporaryDirectory(prefix="kars-doctor-") as scratch:
        directory = Path(scratch) / "workspace"
        try:
            quota.mount_image(Path(scratch) / "image", directory, quota.MIN_BYTES, _UID)
            quota.unmount(directory, lazily=True)
        except IsolationError as error:
            return str(error)
    return ""


def _leave() -> None:
    if os.geteuid() != 0:
        namespaces.enter_user_namespace(_UID)
    namespaces.unshare(
        namespaces.NEWNS | namespaces.NEWIPC | namespaces.NEWUTS | namespaces.NEWPID | namespaces.NEWCGROUP
    )


def _make_door() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()  # so that the holder, if it gets that far, ends at once
    try:
        door.hold(theirs, 8443, _UID, own_user_namespace=os.geteuid() != 0)
    except BrokenPipeError:
        return  # the namespace and the door were made; only nobody took them


def _make_root() -> None:
    _leave()
    # One fork more: only the first child of a new pid namespace can mount its proc.
    if problem := _in_fork(lambda: rootfs.build(rootfs.Root(etc={}))):
        raise IsolationError("root_failed", problem)


def _filter() -> None:
    privileges.forbid_new_privileges()
    installing.install(compiling.compile_profile(compiling.STRICT))


def _in_fork(attempt: Callable[[], None]) -> str:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except BaseException as error:  # noqa: BLE001  # the boundary of the fork: nothing may return from it
            os.write(write_end, f"{error}".encode()[:_MAX_REASON] or b"failed")
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return reason or ("" if status == 0 else f"ended with {status}")
