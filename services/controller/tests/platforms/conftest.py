"""A local platform over a throw-away state directory."""

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from kars_controller.platforms.local.platform import LocalPlatform

from services.controller.tests.platforms.helpers import KEY, PYTHON, abandoned_groups, processes_of


@pytest.fixture
def home() -> Iterator[Path]:
    """A state directory; fails the test that leaves a process, a mount or a cgroup behind."""
    if not os.access(PYTHON, os.X_OK):
        pytest.skip(f"{PYTHON} is missing: the test pods run on it")
    directory = Path(tempfile.mkdtemp(prefix="kars-platform-"))
    before = abandoned_groups()
    yield directory
    assert processes_of(directory) == []
    assert str(directory) not in Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert abandoned_groups() <= before
    shutil.rmtree(directory)


@pytest.fixture
async def platform(home: Path) -> AsyncIterator[LocalPlatform]:
    """A platform whose demo pod is deleted at the end."""
    local = LocalPlatform(home, python=Path(sys.executable))
    yield local
    await local.delete(KEY)
    await local.close()
