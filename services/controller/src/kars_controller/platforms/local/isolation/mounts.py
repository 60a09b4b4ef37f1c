"""Mount primitives on the descriptor-based kernel interface (5.12 and later).

A tree is cloned from the host as a detached descriptor, given its attributes while nobody can see it,
and only then attached, to a directory that is itself a descriptor. No path is ever resolved inside a
tree that a contained process could have written, so a symbolic link planted there leads nowhere.
"""

import ctypes
import os
import stat

from kars_controller.platforms.local.isolation import syscalls
from kars_controller.platforms.local.isolation.errors import IsolationError

NOSUID = 0x2
NODEV = 0x4
NOEXEC = 0x8
RDONLY = 0x1
"""Attributes; the same bits serve mount(2) and mount_setattr(2)."""

_MS_REC = 1 << 14
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def stop_propagation() -> None:
    """Keep later mounts of this namespace from the host; the host's own still arrive."""
    syscalls.call("mount", None, b"/", None, _MS_REC | _MS_SLAVE, None)


def filesystem(kind: str, target: str, attributes: int, options: str = "") -> None:
    """Mount a fresh filesystem of a kind (tmpfs, proc, devpts).

    Raises:
        OSError: not permitted.
    """
    syscalls.call("mount", kind.encode(), target.encode(), kind.encode(), attributes, options.encode())


def clone_tree(source: str, attributes: int) -> int:
    """Return a descriptor of a private copy of a mount tree, with attributes set on all of it.

    Raises:
        OSError: the source is missing, or the kernel is older than 5.12.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    tree = syscalls.call("open_tree", _AT_FDCWD, source.encode(), flags)
    set_attributes(tree, attributes)
    return tree


def set_attributes(tree: int, attributes: int) -> None:
    """Add attributes to a mount and all mounts below it.

    Raises:
        OSError: not permitted.
    """
    wanted = _MountAttr(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    syscalls.call("mount_setattr", tree, b"", flags, wanted, ctypes.sizeof(wanted))


def seal(path: str, attributes: int) -> None:
    """Make one mount read-only, and leave those below it as they are.

    Raises:
        OSError: not permitted.
    """
    wanted = _MountAttr(RDONLY | attributes, 0, 0, 0)
    syscalls.call("mount_setattr", _AT_FDCWD, path.encode(), 0, wanted, ctypes.sizeof(wanted))


def attach(tree: int, place: int) -> None:
    """Attach a detached tree at an open directory or file; closes both.

    Raises:
        OSError: not permitted.
    """
    try:
        flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        syscalls.call("move_mount", tree, b"", place, b"", flags)
    finally:
        os.close(tree)
        os.close(place)


def place_for(root: int, target: str, *, directory: bool) -> int:
    """Open (making what is missing) the place below root where a tree is to be attached.

    Follows no symbolic link in any component.

    Raises:
        IsolationError: `mount_target_refused`, a component is a link or of the wrong kind.
    """
    *parents, leaf = [part for part in target.split("/") if part not in {"", "."}] or [""]
    if not leaf or ".." in {leaf, *parents}:
        raise IsolationError("mount_target_refused", f"{target!r} is no place below the root")
    current = os.dup(root)
    for parent in parents:
        current = _descend(current, parent, target)
    if directory:
        return _descend(current, leaf, target)
    try:
        if not _exists(current, leaf):
            os.close(os.open(leaf, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=current))
        place = os.open(leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    finally:
        os.close(current)
    if not stat.S_ISREG(os.fstat(place).st_mode):
        os.close(place)
        raise IsolationError("mount_target_refused", f"{target}: a plain file was expected")
    return place


def _descend(parent: int, name: str, target: str) -> int:
    try:
        if not _exists(parent, name):
            os.mkdir(name, 0o755, dir_fd=parent)
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise IsolationError("mount_target_refused", f"{target}: {name}: {error.strerror}") from error
    finally:
        os.close(parent)


def _exists(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def pivot_to(root: int) -> None:
    """Make an attached tree the root of this namespace and let the old root go.

    Raises:
        OSError: not permitted.
    """
    os.fchdir(root)
    syscalls.call("pivot_root", b".", b".")
    syscalls.call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
