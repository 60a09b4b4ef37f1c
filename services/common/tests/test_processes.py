"""A service takes the descriptors that it may have."""

import subprocess
import sys

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
