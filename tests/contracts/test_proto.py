"""The contracts are lint-free and only ever grow."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_contracts_pass_lint() -> None:
    result = buf("lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_contracts_do_not_break_what_was_accepted() -> None:
    result = buf("breaking", "proto", "--against", "proto/accepted.json")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("contract", "before", "after"),
    [
        ("policy/v1/policy.proto", "  string digest = 2;", "  bytes digest = 2;"),
        ("audit/v1/audit.proto", "  int64 seq = 1;", ""),
        ("identity/v1/identity.proto", "rpc Renew(RenewRequest)", "rpc Refresh(RenewRequest)"),
    ],
    ids=["changed-type", "removed-field", "renamed-method"],
)
def test_a_breaking_change_is_caught(tmp_path: Path, contract: str, before: str, after: str) -> None:
    shutil.copytree(REPO / "proto" / "kars", tmp_path / "proto" / "kars")
    shutil.copy(REPO / "buf.yaml", tmp_path)
    shutil.copy(REPO / "proto" / "accepted.json", tmp_path)
    target = tmp_path / "proto" / "kars" / contract
    text = target.read_text()
    assert before in text
    target.write_text(text.replace(before, after, 1))

    result = buf("breaking", "proto", "--against", "accepted.json", cwd=tmp_path)

    assert result.returncode == 100, result.stdout + result.stderr
    assert Path(contract).name in result.stdout
