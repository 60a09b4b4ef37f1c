"""A service takes the descriptors that it may have."""

import resource
import subprocess
import sys

import pytest
from kars_common import processes

_SCRIPT = """
import resource
from kars_common.processes import raise_open_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
assert raise_open_files() == hard
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
assert raise_open_files() == hard
"""


def test_the_limit_of_open_files_is_raised_to_what_the_process_may_have() -> None:
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True, timeout=30)


def test_no_limit_is_a_large_number_and_not_minus_one(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert processes.raise_open_files() == sys.maxsize
