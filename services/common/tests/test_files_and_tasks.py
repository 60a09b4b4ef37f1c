"""Replaced files are whole and private; back-off grows, is bounded and never repeats in step."""

import os
import stat
from pathlib import Path

import pytest
from kars_common import files
from kars_common.tasks import Backoff, jittered


def test_replaced_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        files.replace(tmp_path / "new" / "key", b"1")
        files.replace(tmp_path / "new" / "key", b"2")
    finally:
        os.umask(old)
    assert (tmp_path / "new" / "key").read_bytes() == b"2"
    assert stat.S_IMODE((tmp_path / "new" / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_leftover_of_a_crash_is_no_obstacle_and_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"safe")
    (tmp_path / ".key.new").symlink_to(target)
    files.replace(tmp_path / "key", b"1")
    assert target.read_bytes() == b"safe"
    assert (tmp_path / "key").read_bytes() == b"1"


def test_failed_replacement_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.replace(tmp_path / "key", b"old")

    def fail(_: int) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        files.replace(tmp_path / "key", b"new")
    assert (tmp_path / "key").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_backoff_doubles_up_to_its_bound_and_starts_again() -> None:
    backoff = Backoff(first_s=1.0, most_s=8.0)
    waits = [backoff.next_s() for _ in range(50)]
    ceilings = [1.0, 2.0, 4.0] + [8.0] * 47
    assert all(c / 2 <= w <= c for w, c in zip(waits, ceilings, strict=True))
    assert len(set(waits)) > 40
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_jitter_stays_within_its_share() -> None:
    assert all(90 <= jittered(100) <= 110 for _ in range(200))
