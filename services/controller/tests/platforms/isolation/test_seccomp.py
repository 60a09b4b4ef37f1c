"""The compiled filters, run by an interpreter of classic BPF, for both architectures."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_controller.platforms.local.isolation import syscalls
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.isolation.seccomp import bpf, compiling, profiles

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PROFILES = (compiling.STRICT, compiling.DEFAULT)
EPERM, ENOSYS = bpf.refuse_with(errno.EPERM), bpf.refuse_with(errno.ENOSYS)
NO_FAMILY = bpf.refuse_with(errno.EAFNOSUPPORT)
COMPILED = {(m, p): compiling.compile_profile(p, machine=m) for m in MACHINES for p in PROFILES}

machines = st.sampled_from(sorted(MACHINES))
names = st.sampled_from(PROFILES)
words = st.integers(0, 2**64 - 1)


def judge(machine: str, profile: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the kernel would do."""
    padded = (*arguments, *[0] * 6)[:6]
    audit = MACHINES[machine] if architecture is None else architecture
    return run(COMPILED[machine, profile], struct.pack("<IIQ6Q", number, audit, 0, *padded))


def run(program: bytes, data: bytes) -> int:
    code = [struct.unpack_from("HBBI", program, offset) for offset in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x06:
            return int(operand)
        else:
            test = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }
            at += if_true if test[operation] else if_false


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_denied_call_is_refused(machine: str, profile: str) -> None:
    numbers = syscalls.tables()[machine]
    denied = frozenset().union(*(group.calls for group in profiles.DENIED))
    for name in denied & set(numbers):
        assert judge(machine, profile, numbers[name]) == EPERM, name


@pytest.mark.parametrize("machine", MACHINES)
def test_strict_allows_what_it_names_and_nothing_else(machine: str) -> None:
    numbers = syscalls.tables()[machine]
    allowed = frozenset().union(*(group.calls for group in profiles.ALLOWED))
    for name in set(numbers) - profiles.FILTERED:
        expected = bpf.ALLOW if name in allowed else EPERM
        assert judge(machine, compiling.STRICT, numbers[name]) == expected, name


def test_groups_do_not_contradict_each_other() -> None:
    allowed = [group.calls for group in profiles.ALLOWED]
    denied = [group.calls for group in profiles.DENIED]
    every = allowed + denied + [profiles.FILTERED]
    assert sum(map(len, every)) == len(frozenset().union(*every))
    assert all(group.reason for group in profiles.ALLOWED + profiles.DENIED)


@given(machines, names, st.integers(1, 2**32 - 1), words)
def test_every_other_architecture_dies(machine: str, profile: str, architecture: int, first: int) -> None:
    if architecture != MACHINES[machine]:
        assert judge(machine, profile, 0, first, architecture=architecture) == bpf.KILL_PROCESS


@given(names, st.integers(0x40000000, 2**32 - 1))
def test_x32_calls_die(profile: str, number: int) -> None:
    assert judge("x86_64", profile, number) == bpf.KILL_PROCESS


@given(machines, names, st.integers(0, 2**31 - 1))
def test_calls_newer_than_the_table_are_not_there(machine: str, profile: str, offset: int) -> None:
    number = max(syscalls.tables()[machine].values()) + 1 + offset
    if number < 0x40000000:
        assert judge(machine, profile, number) == ENOSYS


@given(machines, names, words)
def test_clone_never_makes_a_namespace(machine: str, profile: str, flags: int) -> None:
    makes_one = flags & 0x7E020000
    verdict = judge(machine, profile, syscalls.tables()[machine]["clone"], flags)
    assert verdict == (EPERM if makes_one else bpf.ALLOW)


@given(machines, names, st.integers(0, 2**32 - 1), words, words)
def test_only_four_socket_families_exist(
    machine: str, profile: str, family: int, kind: int, protocol: int
) -> None:
    verdict = judge(machine, profile, syscalls.tables()[machine]["socket"], family, kind, protocol)
    route = family == 16 and protocol & 0xFFFFFFFF == 0
    assert verdict == (bpf.ALLOW if family in {1, 2, 10} or route else NO_FAMILY)


@given(machines, names, words)
def test_high_words_of_an_ioctl_request_hide_nothing(machine: str, profile: str, high: int) -> None:
    request = (high << 32 | 0x5412) & (2**64 - 1)
    assert judge(machine, profile, syscalls.tables()[machine]["ioctl"], 0, request) == EPERM


@given(machines, names, st.sampled_from(sorted(profiles.STEERING)), words, words)
def test_the_process_that_keeps_accounts_cannot_be_slowed_or_starved(
    machine: str, profile: str, name: str, process: int, other: int
) -> None:
    place = profiles.STEERING[name]
    for pid in (process, process & ~0xFFFFFFFF | 1):
        arguments = (other, pid) if place else (pid, other)
        steers_init = pid & 0xFFFFFFFF == 1
        verdict = judge(machine, profile, syscalls.tables()[machine][name], *arguments)
        assert verdict == (EPERM if steers_init else bpf.ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
def test_pinned_affinity_cannot_be_widened(machine: str) -> None:
    program = compiling.compile_profile(compiling.STRICT, machine=machine, pin_affinity=True)
    number = syscalls.tables()[machine]["sched_setaffinity"]
    assert run(program, struct.pack("<IIQ6Q", number, MACHINES[machine], 0, *[0] * 6)) == EPERM


def test_unknown_profile_and_architecture_are_refused() -> None:
    with pytest.raises(IsolationError) as profile:
        compiling.compile_profile("unconfined")
    assert profile.value.reason == "seccomp_profile_unknown"
    with pytest.raises(IsolationError) as machine:
        compiling.compile_profile(compiling.STRICT, machine="s390x")
    assert machine.value.reason == "architecture_unsupported"


def test_a_jump_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="jump too long"):
        bpf.assemble(bpf.when_equal(1, [bpf.give(bpf.ALLOW)] * 256))
