"""Every promise in the manifest has a test that names it, and no test names another."""

import re
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
_NAME = re.compile(r"def (test_\w+)")
_PROMISE = re.compile(r"(?<![a-z0-9])(mesh_\d\d|[db]\d{1,2})(?![a-z0-9])")


def test_manifest_and_tests_name_the_same_promises() -> None:
    promised = set(tomllib.loads((HERE / "promises.toml").read_text())["promises"])
    named: set[str] = set()
    for file in HERE.glob("test_*.py"):
        for name in _NAME.findall(file.read_text()):
            named.update(_PROMISE.findall(name.replace("test_", "", 1)))
    assert named == promised
