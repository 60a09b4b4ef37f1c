"""Bounded logs, and reading them across a turn-over."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from kars_controller.platforms.local import log_files
from kars_controller.platforms.local.pod.logs import RotatingLog


def test_a_flood_stays_within_its_bound(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "agent.log", max_bytes=1000, keep=2)
    for number in range(500):
        log.write(b"%09d\n" % number)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.log", "agent.log.1", "agent.log.2"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3000
    assert log_files.tail(tmp_path / "agent.log", 3) == b"000000497\n000000498\n000000499\n"


def test_restarted_writer_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = RotatingLog(tmp_path / "agent.log")
        log.write(text)
        log.close()
    assert log_files.tail(tmp_path / "agent.log", None) == b"one\ntwo\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=60), st.integers(1, 5))
def test_a_follower_that_reads_in_time_misses_nothing(
    tmp_path_factory: object, parts: list[bytes], every: int
) -> None:
    directory = tmp_path_factory.mktemp("log")  # type: ignore[attr-defined]  # hypothesis wants it untyped
    log = RotatingLog(directory / "agent.log", max_bytes=200, keep=3)
    follower = log_files.Follower(directory / "agent.log")
    seen = b""
    for number, part in enumerate(parts):
        log.write(part)
        if number % every == 0:
            seen += follower.read()
    seen += follower.read()
    follower.close()
    log.close()
    if every <= 4:  # at most one turn-over between two looks: 4 parts of 40 bytes
        assert seen == b"".join(parts)


@given(st.lists(st.sampled_from([b"a\n", b"b", b"\n"]), max_size=20), st.integers(0, 10))
def test_tail_is_the_last_lines(tmp_path_factory: object, parts: list[bytes], lines: int) -> None:
    path = tmp_path_factory.mktemp("log") / "agent.log"  # type: ignore[attr-defined]  # as above
    whole = b"".join(parts)
    path.write_bytes(whole)
    expected = whole.splitlines(keepends=True)[-lines:] if lines else []
    assert log_files.tail(path, lines) == b"".join(expected)
