"""Where a mount may land: below the root, through no link."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_controller.platforms.local.isolation import mounts
from kars_controller.platforms.local.isolation.errors import IsolationError


def place(root: Path, target: str, *, directory: bool = True) -> str:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        found = mounts.place_for(descriptor, target, directory=directory)
        try:
            return os.readlink(f"/proc/self/fd/{found}")
        finally:
            os.close(found)
    finally:
        os.close(descriptor)


def test_missing_directories_are_made(tmp_path: Path) -> None:
    assert place(tmp_path, "/a/b/c") == str(tmp_path / "a" / "b" / "c")
    assert place(tmp_path, "/a/b/file", directory=False) == str(tmp_path / "a" / "b" / "file")


@pytest.mark.parametrize("planted", ["/a", "/a/b"])
@pytest.mark.parametrize("goal", ["/etc", "..", "/nowhere"])
def test_planted_links_are_refused(tmp_path: Path, planted: str, goal: str) -> None:
    link = tmp_path / planted[1:]
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(goal)
    with pytest.raises(IsolationError) as refused:
        place(tmp_path, "/a/b")
    assert refused.value.reason == "mount_target_refused"


def test_planted_link_for_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("/etc/passwd")
    with pytest.raises(IsolationError):
        place(tmp_path, "/file", directory=False)


def test_planted_file_for_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(IsolationError):
        place(tmp_path, "/a")


@given(st.lists(st.sampled_from(["..", ".", "a", "b"]), min_size=1, max_size=6))
def test_no_target_leaves_the_root(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    root = tmp_path_factory.mktemp("outer") / "root"
    root.mkdir()
    try:
        found = place(root, "/" + "/".join(parts))
    except IsolationError:
        return
    assert Path(found) == root or root in Path(found).parents
    assert sorted(path.name for path in root.parent.iterdir()) == ["root"]
