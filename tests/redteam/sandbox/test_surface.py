"""Every row of the probe table that is about what an agent can see, reach, call and write."""

import os
from typing import Any

import pytest

Campaign = dict[str, Any]

SANDBOXES = ("strict", "default", "no_landlock")
"""The strict filter, the default filter, and the degraded tier without Landlock."""

NO_ROUTE = {"ENETUNREACH"}
NETWORK = {
    "tcp_outside": {"EACCES"},
    "tcp_metadata": {"EACCES"},
    "tcp_host_loopback": {"EACCES"},
    "tcp6_outside": {"EACCES"},
    "tcp6_metadata": {"EACCES"},
    "tcp6_mapped_host": {"EACCES"},
    "udp_outside": NO_ROUTE,
    "udp_metadata": NO_ROUTE,
    "udp6_outside": NO_ROUTE,
    "abstract_socket_of_host": {"ECONNREFUSED", "EPERM"},
    "dns": {"refused"},
    "bind_unplanned_port": {"EACCES"},
}
"""With Landlock, which answers before the empty network namespace does."""
NETWORK_WITHOUT_LANDLOCK = {
    "tcp_outside": NO_ROUTE,
    "tcp_metadata": NO_ROUTE,
    "tcp_host_loopback": {"ECONNREFUSED"},
    "tcp6_outside": NO_ROUTE | {"EADDRNOTAVAIL", "EAFNOSUPPORT"},
    "tcp6_metadata": NO_ROUTE | {"EADDRNOTAVAIL", "EAFNOSUPPORT"},
    "tcp6_mapped_host": {"ECONNREFUSED", "EAFNOSUPPORT"},
    "udp_outside": NO_ROUTE,
    "udp_metadata": NO_ROUTE,
    "udp6_outside": NO_ROUTE | {"EADDRNOTAVAIL", "EAFNOSUPPORT"},
    "abstract_socket_of_host": {"ECONNREFUSED"},
    "dns": {"refused"},
}

REFUSED_CALLS = [
    "ptrace",
    "process_vm_readv",
    "pidfd_getfd",
    "mount",
    "umount",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "pivot_root",
    "chroot",
    "unshare_user",
    "unshare_mount",
    "clone_user",
    "clone_net",
    "setns",
    "bpf",
    "keyctl",
    "add_key",
    "io_uring",
    "userfaultfd",
    "perf",
    "memfd",
    "shared_segment",
    "personality",
    "open_by_handle",
    "syslog",
    "undumpable",
    "type_into_terminal",
    "raw_socket",
]
REFUSED_FAMILIES = ("packet_socket", "vsock", "alg_socket", "bluetooth", "netlink_netfilter")

FILES = {
    "credential_by_host_path": {"ENOENT"},
    "shadow": {"ENOENT"},
    "host_tmp_file": {"ENOENT"},
    "init_environ": {"EACCES"},
    "init_memory": {"EACCES"},
    "init_descriptors": {"EACCES"},
    "init_root": {"EACCES"},
    "kernel_memory": {"ENOENT", "READ b''", "EACCES"},
    "kernel_keys": {"ENOENT", "READ b''", "EACCES"},
    "write_root": {"EROFS"},
    "write_usr": {"EROFS"},
    "write_etc": {"EROFS"},
    "write_dev": {"EROFS"},
    "write_code": {"EROFS"},
    "write_sysctl": {"EROFS", "EACCES"},
    "write_sysrq": {"absent", "covered"},
    "device_node": {"EPERM"},
    "set_uid_root": {"EPERM", "EINVAL"},
    "write_tmp": {"OK"},
    "write_workspace": {"OK"},
    "open_stderr": {"OK"},
    "seed": {"READ b'seeded'"},
}


def _kept_groups() -> set[int]:
    """What the kernel lets an ordinary user not drop: its groups, seen as the mapped one and as nobody's."""
    return set() if os.geteuid() == 0 else {1000, 65534}


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_agent_holds_no_privilege_and_cannot_gain_one(campaign: Campaign, sandbox: str) -> None:
    seen = campaign[sandbox]["self"]
    assert seen["uid"] == 1000
    assert set(seen["groups"]) <= _kept_groups()
    assert [
        seen[f"cap_{kind}"] for kind in ("effective", "permitted", "inheritable", "ambient", "bounding")
    ] == [0] * 5
    assert (seen["no_new_privs"], seen["seccomp"]) == ("1", "2")


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_agent_sees_only_itself(campaign: Campaign, sandbox: str) -> None:
    seen = campaign[sandbox]["self"]
    assert seen["processes"] == [1, 2]
    assert seen["descriptors"] == [0, 1, 2]
    assert seen["interfaces"] == ["lo"]
    assert seen["host_tmp"] == []
    assert seen["top"] == ["opt", "var"]  # /opt holds what the test itself bound
    expected = {"ATTACK_TARGETS", "HOME", "LANG", "PATH", "SANDBOX_NAME", "TMPDIR", "USER"}
    assert set(seen["environment"]) == expected


@pytest.mark.parametrize("row", NETWORK)
@pytest.mark.parametrize("sandbox", ["strict", "default"])
def test_no_way_out_with_landlock(campaign: Campaign, sandbox: str, row: str) -> None:
    _skip_without_full_landlock(campaign)
    assert campaign[sandbox]["network"][row] in NETWORK[row]


@pytest.mark.parametrize("row", NETWORK_WITHOUT_LANDLOCK)
def test_no_way_out_without_landlock(campaign: Campaign, row: str) -> None:
    assert campaign["no_landlock"]["network"][row] in NETWORK_WITHOUT_LANDLOCK[row]


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_resolver_refuses_at_once(campaign: Campaign, sandbox: str) -> None:
    assert campaign[sandbox]["network"]["dns_s"] < 1


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_the_door_answers(campaign: Campaign, sandbox: str) -> None:
    assert campaign[sandbox]["network"]["door"].startswith("200 ")


@pytest.mark.parametrize("row", FILES)
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_files_are_out_of_reach(campaign: Campaign, sandbox: str, row: str) -> None:
    assert campaign[sandbox]["files"][row] in FILES[row]


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_credential_bound_by_mistake_needs_the_uid_split(campaign: Campaign, sandbox: str) -> None:
    """Rootless there is one real user: the platform refuses such a bind and says so aloud."""
    outcome = campaign[sandbox]["files"]["credential_bound_on_purpose"]
    if campaign["mode"] == "root":
        assert outcome == "EACCES"
    else:
        assert outcome.startswith("READ")
        assert _controls(campaign[sandbox])["user-separation"] == "degraded"


@pytest.mark.parametrize("row", REFUSED_CALLS)
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_kernel_surface_is_closed(campaign: Campaign, sandbox: str, row: str) -> None:
    assert campaign[sandbox]["kernel"][row] == "EPERM"


@pytest.mark.parametrize("row", REFUSED_FAMILIES)
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_socket_families_are_closed(campaign: Campaign, sandbox: str, row: str) -> None:
    assert campaign[sandbox]["kernel"][row] == "EAFNOSUPPORT"


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_calls_with_safe_fallbacks_are_not_there(campaign: Campaign, sandbox: str) -> None:
    seen = campaign[sandbox]["kernel"]
    assert seen["clone3"] == "ENOSYS"
    assert seen["netlink_route"] == "OK"
    assert seen.get("x32_abi", "killed by SIGSYS") == "killed by SIGSYS"


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_host_processes_cannot_be_signalled_and_init_survives(campaign: Campaign, sandbox: str) -> None:
    seen = campaign[sandbox]["kernel"]
    assert seen["signal_host_process"] == "ESRCH"
    # The kernel drops a SIGKILL from inside to PID 1; with Landlock it is not even sent.
    assert seen["kill_init"] in {"EPERM", "sent"}


def test_missing_landlock_is_announced(campaign: Campaign) -> None:
    assert _controls(campaign["no_landlock"])["landlock"] == "absent"


def test_required_landlock_that_is_missing_is_refused_with_a_reason(campaign: Campaign) -> None:
    status = campaign["refused"]["status"]
    assert status["phase"] == "Failed"
    assert status["agent"]["reason"] == "IsolationFailed"
    assert "isolation_unavailable" in status["agent"]["message"]
    assert "landlock" in status["agent"]["message"]
    assert status["agent"]["started_at"] is None
    assert campaign["refused"]["log"] == ""


def test_rootless_says_what_is_degraded(campaign: Campaign) -> None:
    controls = _controls(campaign["strict"])
    always = {"namespaces", "network", "capabilities", "read-only-root", "seccomp"}
    assert {controls[name] for name in always} == {"enforced"}
    if campaign["mode"] == "rootless":
        assert controls["user-separation"] == "degraded"
        assert controls["workspace"] == "degraded"
    else:
        assert controls["user-separation"] == "enforced"


def test_two_sandboxes_use_one_port_and_cannot_be_taken_for_each_other(campaign: Campaign) -> None:
    seen = campaign["neighbours"]
    assert seen["doors"] == ["200 left", "200 right"]
    assert seen["dialled"] == ["left", "right"]
    assert seen["closed_port"] == "Connection refused"
    assert seen["host_8443"] == "Connection refused"


def _controls(report: dict[str, Any]) -> dict[str, str]:
    return {control["name"]: control["state"] for control in report["status"]["isolation"]}


def _skip_without_full_landlock(campaign: Campaign) -> None:
    state = _controls(campaign["strict"])["landlock"]
    if state != "enforced":
        pytest.skip(f"landlock is {state} on this kernel")
