"""Runs one campaign of attacks as root and one as an ordinary user; the tests read what came of it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kars_controller
import pytest

REPO = Path(__file__).resolve().parents[3]
PACKAGE = Path(kars_controller.__file__).parent
ORDINARY_UID = 64321
"""An id that nobody has: it owns nothing but what the campaign gives it."""
SYSTEM_PYTHON = "/usr/bin/python3"
TIMEOUT_S = 100


@pytest.fixture(scope="session", params=["root", "rootless"])
def campaign(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the attacker reported, as root's sandbox and as an ordinary user's."""
    if not os.access(SYSTEM_PYTHON, os.X_OK):
        pytest.skip(f"{SYSTEM_PYTHON} is missing: the attacker runs on it")
    is_root = os.geteuid() == 0
    if request.param == "root" and not is_root:
        pytest.skip("root's sandboxes need uid 0")
    drop = request.param == "rootless" and is_root
    # Not pytest's own directory: it is closed to other users.
    scratch = Path(tempfile.mkdtemp(prefix="kars-redteam-"))
    try:
        result = _run(scratch, drop=drop)
        if "unusable" in result:
            pytest.skip(f"this kernel refuses sandboxes to this user: {result['unusable']}")
        yield {**result, "mode": request.param}
    finally:
        shutil.rmtree(scratch)


def _run(scratch: Path, *, drop: bool) -> dict[str, Any]:
    code = scratch / "code"
    code.mkdir()
    # The checkout may lie where an ordinary user cannot look; a copy does, for it is standard library only.
    shutil.copytree(PACKAGE / "platforms", code / "kars_controller" / "platforms")
    shutil.copy(PACKAGE / "__init__.py", code / "kars_controller")
    shutil.copytree(Path(__file__).parent, code / "tests" / "redteam" / "sandbox")
    shutil.copytree(REPO / "tests" / "faults", code / "tests" / "faults")
    work = scratch / "work"
    work.mkdir(mode=0o700)
    scratch.chmod(0o755)
    if drop:
        os.chown(work, ORDINARY_UID, ORDINARY_UID)
    identity = ORDINARY_UID if drop else None
    done = subprocess.run(
        [SYSTEM_PYTHON, "-m", "tests.redteam.sandbox.campaign", str(work)],
        cwd=code,
        env={
            "PYTHONPATH": str(code),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        user=identity,
        group=identity,
        extra_groups=[] if drop else None,
    )
    sys.stderr.write(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
