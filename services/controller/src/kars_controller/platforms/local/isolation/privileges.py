"""Giving up capabilities, user ids and resource headroom, for good.

Everything here is one way. Order matters: rlimits and the bounding set first, then ids, then no_new_privs.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Mapping

from kars_controller.platforms.local.isolation import syscalls

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"


def drop(uid: int, *, own_user_namespace: bool) -> None:
    """Become uid with no capability and no way to gain one.

    Raises:
        OSError: a step failed; the process must not go on.
    """
    with open(_LAST_CAPABILITY, encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        syscalls.prctl(_PR_CAPBSET_DROP, capability)
    syscalls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if not own_user_namespace:  # with one mapped id there are no groups to keep, and setgroups is denied
        os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    syscalls.call("capset", header, ctypes.create_string_buffer(24))
    forbid_new_privileges()


def forbid_new_privileges() -> None:
    """Let no later execve gain anything.

    Raises:
        OSError: the kernel refused.
    """
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def limit(limits: Mapping[int, int]) -> None:
    """Lower resource limits, soft and hard alike; a limit above the present hard one stays as it is.

    Raises:
        OSError: the kernel refused.
    """
    for which, value in limits.items():
        _, hard = resource.getrlimit(which)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (ceiling, ceiling))


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel for a signal when the parent dies. A later change of uid forgets it.

    Raises:
        OSError: the kernel refused.
    """
    syscalls.prctl(_PR_SET_PDEATHSIG, signal_number)


def hide_memory() -> None:
    """Keep processes of the same user from reading this one through /proc or ptrace.

    Raises:
        OSError: the kernel refused.
    """
    syscalls.prctl(_PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent has ended.

    Raises:
        OSError: the kernel refused.
    """
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
