"""Leaving the host's namespaces, mapping ids, and bringing up a loop-back.

Refuses to know what runs inside. A process enters namespaces with `unshare` or `join`; a user namespace
must be entered first, because it grants the right to make the others.
"""

import fcntl
import os
import socket
import struct
from pathlib import Path

from kars_controller.platforms.local.isolation import syscalls

NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
NEWTIME = 0x00000080
ALL = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | NEWTIME

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ_FLAGS = "16sh22x"


def unshare(flags: int) -> None:
    """Leave the namespaces named by flags.

    Raises:
        OSError: EPERM where the host forbids it, ENOSPC at its limit.
    """
    syscalls.call("unshare", flags)


def join(namespace_fd: int, flag: int) -> None:
    """Enter an existing namespace of the kind flag.

    Raises:
        OSError: EPERM without rights over it.
    """
    syscalls.call("setns", namespace_fd, flag)


def enter_user_namespace(inside_id: int) -> None:
    """Make a user namespace in which the caller's own ids appear as inside_id, with all capabilities in it.

    Nobody else is mapped, and supplementary groups cannot be changed for ever after.

    Raises:
        OSError: user namespaces are switched off or used up.
    """
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{inside_id} {outside_uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{inside_id} {outside_gid} 1", encoding="ascii")


def set_hostname(name: str) -> None:
    """Name the UTS namespace.

    Raises:
        OSError: not permitted.
    """
    encoded = name.encode()[:64]
    syscalls.call("sethostname", encoded, len(encoded))


def bring_up_loopback() -> None:
    """Switch on `lo` in this network namespace.

    Raises:
        OSError: not permitted.
    """
    with socket.socket() as probe:
        request = struct.pack(_IFREQ_FLAGS, b"lo", 0)
        _, flags = struct.unpack(_IFREQ_FLAGS, fcntl.ioctl(probe, _SIOCGIFFLAGS, request))
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack(_IFREQ_FLAGS, b"lo", flags | _IFF_UP))
