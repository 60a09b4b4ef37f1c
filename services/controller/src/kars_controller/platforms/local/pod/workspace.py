"""The agent's workspace: a bounded file system where possible, else a plain directory; seeded once."""

import os
import shutil
import stat
from pathlib import Path

from kars_controller.platforms.base import AGENT_UID
from kars_controller.platforms.local.isolation import quota
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.layout import PodDirectory


def prepare(directory: PodDirectory, *, size: int, seed: Path | None, quota_problem: str) -> None:
    """Make the workspace ready to be bound. Idempotent; the seed is copied the first time only.

    Raises:
        IsolationError: `quota_failed`, or `workspace_seed_failed`.
    """
    workspace = directory.workspace
    if quota_problem:
        workspace.mkdir(exist_ok=True)
    else:
        quota.mount_image(directory.workspace_image, workspace, size, AGENT_UID)
    _give(workspace)
    workspace.chmod(0o700)
    if directory.seeded.exists():
        return
    if seed is not None:
        try:
            _copy(seed, workspace)
        except OSError as error:
            raise IsolationError("workspace_seed_failed", f"cannot copy {seed}: {error}") from error
    directory.seeded.touch(mode=0o600)


def release(directory: PodDirectory) -> None:
    """Unmount it if it is mounted; the files stay. Idempotent."""
    quota.unmount(directory.workspace, lazily=True)


def _copy(source: Path, target: Path) -> None:
    """Copy directories and plain files; leave links and special files out, for they name things outside."""
    for entry in sorted(source.iterdir()):
        mode = entry.lstat().st_mode
        goal = target / entry.name
        if stat.S_ISDIR(mode):
            goal.mkdir(mode=0o755, exist_ok=True)
            _give(goal)
            _copy(entry, goal)
        elif stat.S_ISREG(mode):
            _copy_file(entry, goal)
            goal.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
            _give(goal)


def _copy_file(source: Path, target: Path) -> None:
    """Copy one file that is no link, also if it became one since somebody looked."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing)


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, AGENT_UID, AGENT_UID, follow_symlinks=False)
