"""Landlock: a process's own list of what it may open, connect to and signal, kept by the kernel.

A second fence behind the mount and network namespaces. The kernel's ABI decides how much of it there is:
1 files, 2 renames across directories, 3 truncation, 4 TCP ports, 5 device ioctls, 6 signals and abstract
sockets.
"""

import ctypes
import os
from dataclasses import dataclass

from kars_controller.platforms.local.isolation import privileges, syscalls
from kars_controller.platforms.local.isolation.errors import IsolationError

FULL_ABI = 6
"""From here on everything that `restrict` asks for exists."""

_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1
_RULE_NET_PORT = 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FS_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEV}  # what each ABI added
_NET_BIND, _NET_CONNECT = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What remains allowed."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    connect_ports: tuple[int, ...]
    bind_ports: tuple[int, ...]


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("access", ctypes.c_uint64), ("port", ctypes.c_uint64))


def abi() -> int:
    """Return the kernel's Landlock ABI, 0 when there is none."""
    try:
        return syscalls.call("landlock_create_ruleset", None, 0, _CREATE_VERSION)
    except OSError:
        return 0


def restrict(rules: Rules) -> None:
    """Confine the calling process and all it will start, as far as the ABI goes.

    Raises:
        IsolationError: `landlock_failed`; the process must not go on.
    """
    version = abi()
    try:
        _restrict(rules, version)
    except OSError as error:
        raise IsolationError("landlock_failed", f"landlock ABI {version}: {error}") from error


def _restrict(rules: Rules, version: int) -> None:
    handled = sum(rights for since, rights in _FS_RIGHTS.items() if version >= since)
    net = _NET_BIND | _NET_CONNECT if version >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if version >= 6 else 0
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = syscalls.call("landlock_create_ruleset", _RulesetAttr(handled, net, scoped), size, 0)
    for path in rules.read:
        _allow_path(ruleset, path, _READ)
    for path in rules.write:
        _allow_path(ruleset, path, handled)
    if net:
        for port in rules.connect_ports:
            syscalls.call("landlock_add_rule", ruleset, _RULE_NET_PORT, _NetPort(_NET_CONNECT, port), 0)
        for port in rules.bind_ports:
            syscalls.call("landlock_add_rule", ruleset, _RULE_NET_PORT, _NetPort(_NET_BIND, port), 0)
    privileges.forbid_new_privileges()
    syscalls.call("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def _allow_path(ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nothing there, nothing to allow
    if not os.path.isdir(path):
        access &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
    try:
        rule = _PathBeneath(access, descriptor)
        syscalls.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
