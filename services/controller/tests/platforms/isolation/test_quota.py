"""The workspace as a file system of its own, on this machine's loop devices."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_controller.platforms.local.isolation import quota
from kars_controller.platforms.local.isolation.errors import IsolationError

MIB = 1 << 20
pytestmark = pytest.mark.skipif(quota.unavailable() != "", reason=quota.unavailable() or "available")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "workspace"
    yield directory
    quota.unmount(directory, lazily=True)


def test_files_survive_unmounting_and_growing(tmp_path: Path, workspace: Path) -> None:
    image = tmp_path / "image"
    quota.mount_image(image, workspace, 16 * MIB, 1000)
    quota.mount_image(image, workspace, 16 * MIB, 1000)
    assert (workspace.stat().st_uid, list(workspace.iterdir())) == (1000, [])
    (workspace / "kept").write_text("kept", encoding="ascii")
    quota.unmount(workspace, lazily=False)
    assert not quota.is_mounted(workspace)
    quota.mount_image(image, workspace, 32 * MIB, 1000)
    assert (workspace / "kept").read_text(encoding="ascii") == "kept"
    assert image.stat().st_size == 32 * MIB


def test_shrinking_is_refused_with_a_reason(tmp_path: Path, workspace: Path) -> None:
    quota.mount_image(tmp_path / "image", workspace, 32 * MIB, 1000)
    quota.unmount(workspace, lazily=False)
    with pytest.raises(IsolationError) as refused:
        quota.mount_image(tmp_path / "image", workspace, 16 * MIB, 1000)
    assert refused.value.reason == "quota_failed"
    assert "shrink" in str(refused.value)


def test_workspace_in_use_on_the_host_is_not_torn_away(tmp_path: Path, workspace: Path) -> None:
    quota.mount_image(tmp_path / "image", workspace, 16 * MIB, 1000)
    with (workspace / "open").open("w"), pytest.raises(IsolationError) as refused:
        quota.unmount(workspace, lazily=False)
    assert "in use" in str(refused.value)
