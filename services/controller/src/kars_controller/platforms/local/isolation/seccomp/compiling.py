"""From a profile's name to a filter program.

Order inside the program: wrong architecture and x32 die; argument-filtered calls; named calls; the
profile's default.
"""

import errno
import platform

from kars_controller.platforms.local.isolation import namespaces, syscalls
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.isolation.seccomp import bpf, profiles

STRICT = "kars-strict"
DEFAULT = "RuntimeDefault"

_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_FIRST = 0x40000000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PR_SET_DUMPABLE, _PR_SET_MM = 4, 35
_INIT = 1
_EPERM = bpf.refuse_with(errno.EPERM)


def compile_profile(name: str, *, machine: str | None = None, pin_affinity: bool = False) -> bytes:
    """Return the filter of a profile for an architecture (default: this machine's).

    pin_affinity also refuses changes of CPU affinity, for hosts where affinity stands in for a CPU limit.

    Raises:
        IsolationError: `seccomp_profile_unknown` or `architecture_unsupported`.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCHITECTURE:
        raise IsolationError("architecture_unsupported", f"no system-call filter for {machine}")
    numbers = syscalls.tables()[machine]
    program = _prologue(machine) + _argument_filters(numbers)
    if pin_affinity:
        program += _each(numbers, frozenset({"sched_setaffinity"}), _EPERM)
    if name == STRICT:
        program += _each(numbers, _union(profiles.ALLOWED), bpf.ALLOW)
        # A call newer than our table is "not there", so that libc falls back; a known one is refused.
        program += bpf.when_at_least(max(numbers.values()) + 1, [bpf.give(bpf.refuse_with(errno.ENOSYS))])
        program.append(bpf.give(_EPERM))
    elif name == DEFAULT:
        program += _each(numbers, _union(profiles.DENIED), _EPERM)
        program += bpf.when_at_least(max(numbers.values()) + 1, [bpf.give(bpf.refuse_with(errno.ENOSYS))])
        program.append(bpf.give(bpf.ALLOW))
    else:
        raise IsolationError("seccomp_profile_unknown", f"no profile {name!r}; have {STRICT}, {DEFAULT}")
    return bpf.assemble(program)


def _prologue(machine: str) -> list[bpf.Instruction]:
    right = _AUDIT_ARCHITECTURE[machine]
    program = [bpf.load(bpf.ARCHITECTURE_OFFSET)]
    program += [*bpf.unless_equal(right, [bpf.give(bpf.KILL_PROCESS)]), bpf.load(bpf.NUMBER_OFFSET)]
    if machine == "x86_64":
        program += bpf.when_at_least(_X32_FIRST, [bpf.give(bpf.KILL_PROCESS)])
    return program


def _argument_filters(numbers: dict[str, int]) -> list[bpf.Instruction]:
    allow = bpf.give(bpf.ALLOW)
    refuse = bpf.give(_EPERM)
    clone = [bpf.load_argument(0), *bpf.when_any_bit(namespaces.ALL & ~namespaces.NEWTIME, [refuse]), allow]
    netlink = [bpf.load_argument(2), *bpf.when_equal(_NETLINK_ROUTE, [allow])]
    no_family = bpf.give(bpf.refuse_with(errno.EAFNOSUPPORT))
    socket = [bpf.load_argument(0)]
    for family in (_AF_UNIX, _AF_INET, _AF_INET6):
        socket += bpf.when_equal(family, [allow])
    socket += [*bpf.when_equal(_AF_NETLINK, netlink), no_family]
    ioctl = [bpf.load_argument(1)]
    for request in (_TIOCSTI, _TIOCLINUX):  # typing into a terminal that is not one's own
        ioctl += bpf.when_equal(request, [refuse])
    prctl = [bpf.load_argument(0)]
    for option in (_PR_SET_DUMPABLE, _PR_SET_MM):  # hiding from PID 1's accounts, forging one's memory map
        prctl += bpf.when_equal(option, [refuse])
    # clone3 hides its flags behind a pointer; "not there" makes libc use clone
    not_there = [bpf.give(bpf.refuse_with(errno.ENOSYS))]
    filters = {
        "clone": clone,
        "clone3": not_there,
        "socket": socket,
        "ioctl": [*ioctl, allow],
        "prctl": [*prctl, allow],
    }
    for name, place in profiles.STEERING.items():
        filters[name] = [bpf.load_argument(place), *bpf.when_equal(_INIT, [refuse]), allow]
    return [
        instruction for name, body in filters.items() for instruction in bpf.when_equal(numbers[name], body)
    ]


def _each(numbers: dict[str, int], names: frozenset[str], action: int) -> list[bpf.Instruction]:
    known = sorted(numbers[name] for name in names - profiles.FILTERED if name in numbers)
    return [instruction for number in known for instruction in bpf.when_equal(number, [bpf.give(action)])]


def _union(groups: tuple[profiles.Group, ...]) -> frozenset[str]:
    return frozenset().union(*(group.calls for group in groups))
