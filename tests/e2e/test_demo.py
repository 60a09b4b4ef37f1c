"""`make demo` from outside: passes for this user and for an ordinary one, fails when a control is gone."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDINARY_UID = 21_437
DEMO_S = 240

pytestmark = [pytest.mark.timeout(DEMO_S + 60)]


def run_demo(folder: Path, *arguments: str, uid: int | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the demo with a folder for everything that it writes."""
    keep = ("PATH", "LANG", "VIRTUAL_ENV")
    environ = {name: os.environ[name] for name in keep if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        env=environ | {"HOME": str(folder), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
        user=uid,
        group=uid,
        extra_groups=[] if uid is not None else None,
    )


def nothing_is_left(folder: Path) -> bool:
    return processes_mentioning(str(folder)) == [] and list(folder.glob("kars-demo-*")) == []


def processes_mentioning(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found


def readable_by_others(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may pass through, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="kars-e2e-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def ordinary_folder(folder: Path) -> Path:
    """The same, owned by a user without any rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    for needed in (ROOT, Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()):
        if not readable_by_others(needed):
            pytest.skip(f"an ordinary user cannot reach {needed}")
    os.chown(folder, ORDINARY_UID, ORDINARY_UID)
    return folder


def test_demo_proves_every_control_and_leaves_nothing(folder: Path) -> None:
    ended = run_demo(folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("model: an embedded deterministic server")
    for control in (
        *("zero credentials", "no network", "kernel surface", "governed call"),
        *("approval", "budget", "audit", "last known policy"),
        *("agent mesh", "ciphertext only", "stranger in the mesh"),
    ):
        assert re.search(rf"· {control}: held", ended.stdout), control
    assert nothing_is_left(folder)


@pytest.mark.root
def test_demo_proves_every_control_for_an_ordinary_user(ordinary_folder: Path) -> None:
    ended = run_demo(ordinary_folder, uid=ORDINARY_UID)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every control held" in ended.stdout
    assert nothing_is_left(ordinary_folder)


@pytest.mark.parametrize(
    ("fault", "control"), [("netns", "no network"), ("seccomp", "kernel surface"), ("audit", "audit")]
)
def test_demo_fails_aloud_when_a_control_is_taken_away(folder: Path, fault: str, control: str) -> None:
    ended = run_demo(folder, "--fault", fault)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert f"· {control}: FAILED" in ended.stdout
    assert f"FAILED: {control}" in ended.stdout or f", {control}" in ended.stdout.splitlines()[-1]
    assert nothing_is_left(folder)


def test_product_knows_no_fault_of_the_demo() -> None:
    for folder in ("services", "cli", "sdk", "runtimes"):
        for file in (ROOT / folder).rglob("*.py"):
            assert "tests/faults" not in file.read_text(encoding="utf-8"), file
