"""Both cgroup versions, on directory trees that stand in for the kernel's."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kars_controller.platforms.local.isolation import cgroups

CEILINGS = cgroups.Ceilings(memory_bytes=256 << 20, pids=64, cpu_millis=1500)


def v2_directory(path: Path, *keys: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for key in ("cgroup.procs", "cgroup.controllers", "cgroup.subtree_control", *keys):
        (path / key).write_text("cpu memory pids" if key == "cgroup.controllers" else "", encoding="ascii")
    return path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A v2 hierarchy where user.slice is root's and user@1.service is delegated."""
    v2_directory(tmp_path)
    v2_directory(tmp_path / "user.slice")
    delegated = v2_directory(tmp_path / "user.slice" / "user@1.service")
    v2_directory(delegated / "app.slice")
    keys = ("memory.max", "memory.oom.group", "memory.swap.max", "pids.max", "cpu.max")
    v2_directory(delegated / "kars-x", *keys)
    return tmp_path


def closed(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Tests may run as root, to whom no mode is a barrier."""
    shut = {str(path) for path in paths}
    monkeypatch.setattr(
        os, "access", lambda path, _mode: str(path if path.is_dir() else path.parent) not in shut
    )


def test_v2_limits_are_set_in_the_topmost_delegated_group(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(monkeypatch, v2, v2 / "user.slice")
    group = cgroups.create(
        "kars-x", CEILINGS, mount=v2, membership="0::/user.slice/user@1.service/app.slice\n"
    )
    directory = v2 / "user.slice" / "user@1.service" / "kars-x"
    assert group.missing == {}
    assert set(group.directories.values()) == {directory}
    written = {
        key: (directory / key).read_text(encoding="ascii") for key in ("memory.max", "pids.max", "cpu.max")
    }
    assert written == {"memory.max": str(256 << 20), "pids.max": "64", "cpu.max": "150000 100000"}
    assert (directory / "memory.oom.group").read_text(encoding="ascii") == "1"
    assert (directory / "memory.swap.max").read_text(encoding="ascii") == "0"
    assert "+memory" in (directory.parent / "cgroup.subtree_control").read_text(encoding="ascii")


def test_v2_without_delegation_is_missing_with_a_reason(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(monkeypatch, *[path for path in v2.rglob("*") if path.is_dir()], v2)
    group = cgroups.create(
        "kars-x", CEILINGS, mount=v2, membership="0::/user.slice/user@1.service/app.slice\n"
    )
    assert set(group.missing) == set(cgroups.CONTROLLERS)
    assert "delegated" in group.missing["memory"]


def test_v2_controller_that_is_not_delegated_is_missing_alone(
    v2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(monkeypatch, v2, v2 / "user.slice")
    directory = v2 / "user.slice" / "user@1.service" / "kars-x"
    (directory / "cpu.max").unlink()
    group = cgroups.create("kars-x", CEILINGS, mount=v2, membership="0::/user.slice/user@1.service\n")
    assert set(group.missing) == {"cpu"}
    assert set(group.directories) == {"memory", "pids"}


def test_v2_counts_oom_kills(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(monkeypatch, v2, v2 / "user.slice")
    group = cgroups.create("kars-x", CEILINGS, mount=v2, membership="0::/user.slice/user@1.service\n")
    (group.directories["memory"] / "memory.events").write_text(
        "oom 3\noom_kill 2\noom_group_kill 1\n", encoding="ascii"
    )
    assert group.oom_kills() == 2


def test_v1_controllers_are_set_one_by_one(tmp_path: Path) -> None:
    keys = {
        "memory": ("memory.limit_in_bytes", "memory.swappiness", "memory.oom_control"),
        "cpu": ("cpu.cfs_period_us", "cpu.cfs_quota_us"),
    }
    for controller, names in keys.items():
        directory = tmp_path / controller / "mine" / "kars-x"
        directory.mkdir(parents=True)
        for name in (*names, "cgroup.procs"):
            (directory / name).write_text("", encoding="ascii")
    group = cgroups.create(
        "kars-x", CEILINGS, mount=tmp_path, membership="4:memory:/mine\n1:cpu:/mine\n0::/\n"
    )
    assert set(group.missing) == {"pids"}
    assert group.version == 1
    quota = group.directories["cpu"] / "cpu.cfs_quota_us"
    assert quota.read_text(encoding="ascii") == "150000"
    (group.directories["memory"] / "memory.oom_control").write_text(
        "under_oom 0\noom_kill 5\n", encoding="ascii"
    )
    assert group.oom_kills() == 5


def test_a_limit_that_the_kernel_lacks_is_never_created_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "pids" / "kars-x").mkdir(parents=True)
    group = cgroups.create("kars-x", CEILINGS, mount=tmp_path, membership="8:pids:/\n")
    assert "pids" in group.missing
    assert not (tmp_path / "pids" / "kars-x" / "pids.max").exists()


def test_a_process_that_cannot_be_added_is_an_error(tmp_path: Path) -> None:
    group = cgroups.Group({"pids": tmp_path}, {}, version=1)
    with pytest.raises(OSError, match=r"cgroup\.procs"):
        group.add(os.getpid())


def test_real_group_of_this_machine_kills_and_disappears() -> None:
    group = cgroups.create(f"kars-test-{os.getpid()}", CEILINGS)
    if group.missing:
        pytest.skip(f"this user gets no cgroup: {group.missing}")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        group.add(child.pid)
        group.kill()
        assert child.wait(5) == -signal.SIGKILL
    assert group.remove()


@pytest.mark.parametrize("path", ["{mount}/other", "{mount}/../kars-x", "{outside}/kars-x", "/"])
def test_leftover_that_is_no_group_of_ours_is_left_alone(tmp_path: Path, path: str) -> None:
    mount = tmp_path / "mount"
    for directory in (mount / "other", tmp_path / "kars-x", tmp_path / "outside" / "kars-x"):
        directory.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    cgroups.remove_leftover(path.format(mount=mount, outside=tmp_path / "outside"), mount=mount)
    assert sorted(tmp_path.rglob("*")) == before


def test_sweep_takes_the_empty_groups_of_the_dead_and_nothing_else(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest pid that Linux gives
    names = (
        f"kars-default-a-{dead}",
        f"kars-default-b-{os.getpid()}",
        f"kars-c-{dead}",
        "kars-x",
        f"other-{dead}",
    )
    for name in names:
        (tmp_path / "pids" / "mine" / name).mkdir(parents=True)
    (tmp_path / "pids" / f"kars-above-{dead}").mkdir()
    (tmp_path / "pids" / "mine" / names[2] / "inhabited").mkdir()
    cgroups.sweep(mount=tmp_path, membership="8:pids:/mine\n0::/\n")
    assert sorted(path.name for path in (tmp_path / "pids" / "mine").iterdir()) == sorted(names[1:])
    assert (tmp_path / "pids" / f"kars-above-{dead}").exists()
