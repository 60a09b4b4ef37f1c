"""Where the benchmark runs: which core does what, and a network that leads nowhere.

The run moves itself into a network namespace with nothing but loopback, so
that "offline" is a fact and not a setting, and no port is shared with anybody.
"""

import ctypes
import dataclasses
import fcntl
import os
import socket
import struct
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which core runs the subject and which the load; equal when the machine has only one for us."""

    subject: int
    load: int
    available: int

    def describe(self) -> str:
        """Say in one sentence how the machine is divided."""
        if self.subject == self.load:
            return f"ONE core ({self.subject}) for everything: figures are not comparable with a two-core run"
        spare = f"; {self.available - 2} more left idle" if self.available > 2 else ""
        return f"core {self.subject} for the proxy, core {self.load} for load and upstream{spare}"


def cores() -> Cores:
    """Divide the cores that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(subject=usable[0], load=usable[1] if len(usable) > 1 else usable[0], available=len(usable))


def leave_the_network() -> str | None:
    """Move this process, which must have one thread, into an empty network namespace.

    Returns:
        None when done; otherwise the kernel's reason, and the process stays where it was.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWNET if uid == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        return os.strerror(ctypes.get_errno())
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _loopback_up()
    return None


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        query = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, query))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
