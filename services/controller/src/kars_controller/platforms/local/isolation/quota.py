"""A disk quota by construction: a workspace that is a file system of its own on a loop device.

Needs root, a loop device and mkfs.ext4. Where one is missing the caller falls back to `watchdog`. The
image is never parsed by anything but this kernel, and the contained process only ever sees the mounted
files.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

from kars_controller.platforms.local.isolation import mounts, syscalls
from kars_controller.platforms.local.isolation.errors import IsolationError

_CONTROL = "/dev/loop-control"
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_TRIES = 8
_MNT_DETACH = 2
_FREE_TIMEOUT_S = 2.0
_FREE_PAUSE_S = 0.01
_TOOL_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_TOOL_TIMEOUT_S = 60
MIN_BYTES = 8 << 20
"""Below this ext4 has no room for itself."""


class _LoopInfo(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("size_limit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_uint8 * 32),
        ("init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo),
        ("reserved", ctypes.c_uint64 * 8),
    )


def unavailable() -> str:
    """Say why this machine cannot make such a workspace; empty when it can."""
    if os.geteuid() != 0:
        return "loop devices need root"
    if not os.path.exists(_CONTROL):
        return f"{_CONTROL} is missing"
    if shutil.which("mkfs.ext4", path=_TOOL_PATH) is None:
        return "mkfs.ext4 (package e2fsprogs) is missing"
    return ""


def is_mounted(directory: Path) -> bool:
    """Say whether something is mounted exactly here."""
    return directory.is_dir() and os.path.ismount(directory)


def mount_image(image: Path, directory: Path, size: int, uid: int) -> None:
    """Mount a file system of a size, owned by uid, made or grown as needed. Idempotent.

    Raises:
        IsolationError: `quota_failed`: the image is larger already, or has to grow and is in use on the host.
    """
    size = max(size, MIN_BYTES)
    directory.mkdir(exist_ok=True)
    try:
        present = image.stat().st_size if image.exists() else 0
        if present > size:
            raise IsolationError(
                "quota_failed",
                f"workspace holds {present} bytes and cannot shrink to {size}; delete the sandbox first",
            )
        if is_mounted(directory):
            if present == size:
                return
            unmount(directory, lazily=False)
        if present == 0:
            _make(image, size, uid)
        else:
            _wait_until_free(image)  # mounted twice, an image is destroyed
            _grow(image, present, size)
        name, device = _attach_loop(image)
        try:
            flags = mounts.NOSUID | mounts.NODEV
            syscalls.call("mount", name.encode(), str(directory).encode(), b"ext4", flags, None)
        finally:
            os.close(device)
    except (OSError, subprocess.SubprocessError) as error:
        raise IsolationError("quota_failed", f"workspace image: {error}") from error
    with contextlib.suppress(OSError):
        (directory / "lost+found").rmdir()


def unmount(directory: Path, *, lazily: bool) -> None:
    """Unmount the workspace if it is mounted; the loop device goes with its last user. Idempotent.

    Raises:
        IsolationError: `quota_failed`, it is in use and lazily is False.
    """
    while is_mounted(directory):
        try:
            syscalls.call("umount2", str(directory).encode(), _MNT_DETACH if lazily else 0)
        except OSError as error:
            raise IsolationError("quota_failed", f"workspace is in use on the host: {error}") from error


def _make(image: Path, size: int, uid: int) -> None:
    fresh = image.with_suffix(".new")
    with fresh.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)
    options = f"lazy_itable_init=1,root_owner={uid}:{uid}"
    _tool("mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, str(fresh))
    fresh.rename(image)


def _grow(image: Path, present: int, size: int) -> None:
    if present < size:
        os.truncate(image, size)
        _tool("e2fsck", "-f", "-p", str(image))
        _tool("resize2fs", str(image))


def _wait_until_free(image: Path) -> None:
    """Wait until no loop device shows the image: a dead mount namespace is let go a moment later."""
    deadline = time.monotonic() + _FREE_TIMEOUT_S
    while _shown_by_a_loop_device(image):
        if time.monotonic() > deadline:
            raise IsolationError("quota_failed", "the workspace image is still in use")
        time.sleep(_FREE_PAUSE_S)


def _shown_by_a_loop_device(image: Path) -> bool:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached while we looked
            if backing.read_text(encoding="utf-8").rstrip("\n") == str(image):
                return True
    return False


def _tool(name: str, *arguments: str) -> None:
    program = shutil.which(name, path=_TOOL_PATH)
    if program is None:
        raise IsolationError("quota_failed", f"{name} (package e2fsprogs) is missing")
    done = subprocess.run(  # noqa: S603  # a system tool by absolute path, arguments are ours
        [program, *arguments], capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False, text=True
    )
    if done.returncode > 1:  # e2fsck says 1 for "corrected"
        raise IsolationError("quota_failed", f"{name}: {done.stderr.strip()[:200]}")


def _attach_loop(image: Path) -> tuple[str, int]:
    """Return a loop device on the image, and a descriptor that keeps it until it is mounted."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):  # another process may take the free device first
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                config = _LoopConfig(fd=backing, info=_LoopInfo(flags=_LO_FLAGS_AUTOCLEAR))
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno == errno.EBUSY:
                    continue
                raise
            return name, device
    finally:
        os.close(control)
        os.close(backing)
    raise IsolationError("quota_failed", "no free loop device")
