"""Every weakness that we say is closed has a test that attacks it, and no test claims an unknown one."""

import re
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TEST_NAME = re.compile(r"def (test_\w*?register_\w+)")


def attacked_rows() -> set[str]:
    rows: set[str] = set()
    for folder in ("services", "tests", "cli", "sdk"):
        for file in (REPO / folder).rglob("test_*.py"):
            for name in TEST_NAME.findall(file.read_text(encoding="utf-8")):
                numbers = re.search(r"register_(\d+(?:_(?:and_)?\d+)*)", name)
                rows.update(re.findall(r"\d+", numbers.group(1)) if numbers else ())
    return rows


def test_register_manifest_and_tests_name_the_same_rows() -> None:
    register = tomllib.loads(Path(__file__).with_name("register.toml").read_text(encoding="utf-8"))
    closed, later = set(register["router"]["closed"]), set(register["router"]["later"])

    assert not closed & later
    assert attacked_rows() - later == closed
