"""`make demo` from outside: passes for this user and for an ordinary one, fails when a control is gone."""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDINARY_UID = 21_437
DEMO_S = 240

pytestmark = [pytest.mark.timeout(DEMO_S + 60)]


def run_demo(
    *arguments: str, uid: int | None = None, home: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    keep = ("PATH", "LANG", "VIRTUAL_ENV")
    environ = {name: os.environ[name] for name in keep if name in os.environ} | {
        "HOME": str(home or Path.home())
    }
    if home is not None:
        environ["TMPDIR"] = str(home)
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
        user=uid,
        group=uid,
        extra_groups=[] if uid is not None else None,
    )


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
def ordinary_home() -> Iterator[Path]:
    """A home of an ordinary user's own, outside pytest's 0700 folders."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    try:
        pwd.getpwuid(ORDINARY_UID)
    except KeyError:
        pass
    else:
        pytest.skip(f"uid {ORDINARY_UID} belongs to somebody")
    for needed in (ROOT, Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()):
        if not readable_by_others(needed):
            pytest.skip(f"an ordinary user cannot reach {needed}")
    home = Path("/var/tmp") / f"kars-e2e-{os.getpid()}"
    home.mkdir(mode=0o700)
    os.chown(home, ORDINARY_UID, ORDINARY_UID)
    yield home
    shutil.rmtree(home, ignore_errors=True)


def test_demo_proves_every_control_and_leaves_no_process() -> None:
    ended = run_demo()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("model: an embedded deterministic server")
    for control in (
        *("zero credentials", "no network", "kernel surface", "governed call"),
        *("approval", "budget", "audit", "last known policy"),
    ):
        assert re.search(rf"· {control}: held", ended.stdout), control
    assert processes_mentioning("kars-demo-") == []


@pytest.mark.root
def test_demo_proves_every_control_for_an_ordinary_user(ordinary_home: Path) -> None:
    ended = run_demo(uid=ORDINARY_UID, home=ordinary_home)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every control held" in ended.stdout
    assert processes_mentioning(str(ordinary_home)) == []
    assert list(ordinary_home.glob("kars-demo-*")) == []


@pytest.mark.parametrize(
    ("fault", "control"), [("netns", "no network"), ("seccomp", "kernel surface"), ("audit", "audit")]
)
def test_demo_fails_aloud_when_a_control_is_taken_away(fault: str, control: str) -> None:
    ended = run_demo("--fault", fault)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert f"· {control}: FAILED" in ended.stdout
    assert f"FAILED: {control}" in ended.stdout or f", {control}" in ended.stdout.splitlines()[-1]
    assert processes_mentioning("kars-demo-") == []


def test_product_knows_no_fault_of_the_demo() -> None:
    for folder in ("services", "cli", "sdk", "runtimes"):
        for file in (ROOT / folder).rglob("*.py"):
            assert "tests/faults" not in file.read_text(encoding="utf-8"), file
