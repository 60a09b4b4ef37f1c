"""What PID 1 would see, asked here of this process's own pid namespace and a directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kars_controller.platforms.local.isolation import watchdog

MIB = 1 << 20
HOLD_A_GHOST = """
import os, sys
with open(sys.argv[1], "wb") as file:
    file.write(b"x" * 2**20)
    file.flush()
    os.unlink(sys.argv[1])
    print("ready", flush=True)
    input()
"""
FORK_WITH_64_MIB = """
import os
held = bytearray(b"x") * (64 << 20)
if os.fork():
    print("ready", flush=True)
os.read(0, 1)
"""


def test_deleted_but_open_and_hard_linked_files_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghost = tmp_path / "ghost"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_GHOST, str(ghost)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        monkeypatch.setattr(watchdog, "_others", lambda: iter([str(holder.pid)]))
        (tmp_path / "file").write_bytes(b"x" * MIB)
        os.link(tmp_path / "file", tmp_path / "same")
        assert 2 * MIB <= watchdog.workspace_bytes(str(tmp_path)) < 3 * MIB
        holder.communicate("\n")


def test_closed_directories_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_others", lambda: iter(()))
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut" / "file").write_bytes(b"x" * MIB)
    (tmp_path / "shut").chmod(0)
    assert watchdog.workspace_bytes(str(tmp_path)) >= MIB


def test_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_others", lambda: iter(()))
    (tmp_path / "link").symlink_to("/usr")
    assert watchdog.workspace_bytes(str(tmp_path)) < MIB


def test_shared_pages_of_forks_are_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORK_WITH_64_MIB], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="ascii").split()
        monkeypatch.setattr(watchdog, "_others", lambda: iter([str(parent.pid), *children]))
        assert watchdog.anonymous_bytes() > 128 * MIB
        assert watchdog.proportional_bytes() < 110 * MIB
        assert not watchdog.exceeds_memory(110 * MIB)
        assert watchdog.exceeds_memory(32 * MIB)
        parent.communicate(b"xx")
