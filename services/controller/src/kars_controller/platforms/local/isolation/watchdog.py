"""Accounts that PID 1 keeps when the kernel keeps none: anonymous memory, bytes in the workspace.

Reads /proc of its own pid namespace, where every process is a contained one. Weaker than a cgroup or a
file system: it sees an excess after the fact and can only kill. Refuses to know how.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

MEMORY_INTERVAL_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BLOCK = 512
WORKSPACE_INTERVAL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What to watch; None means that somebody else does."""

    memory_bytes: int | None = None
    workspace_bytes: int | None = None
    workspace: str = "/sandbox"

    @property
    def watches(self) -> bool:
        """Whether there is anything to do."""
        return self.memory_bytes is not None or self.workspace_bytes is not None


def exceeds_memory(limit: int) -> bool:
    """Say whether the anonymous memory of all processes but the caller is above a limit.

    The cheap sum counts pages that forks share once for each; only when it is too high is the exact one made.
    """
    return anonymous_bytes() > limit and proportional_bytes() > limit


def proportional_bytes() -> int:
    """Sum anonymous memory, shared pages by their share; a process that is closed to us counts in full."""
    total = 0
    for pid in _others():
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss_Anon:"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        except PermissionError:
            total += _resident_anonymous(pid)
    return total


def anonymous_bytes() -> int:
    """Sum anonymous memory, shared pages in full for each process."""
    return sum(_resident_anonymous(pid) for pid in _others())


def _resident_anonymous(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            fields = file.read().split()
    except OSError:
        return 0  # it ended
    return (int(fields[1]) - int(fields[2])) * _PAGE


def workspace_bytes(root: str) -> int:
    """Sum the disk blocks below root, with files that were deleted but are still held open.

    Raises:
        PermissionError: a directory or a process is closed to us; then the sum would be a lie.
    """
    device = os.lstat(root).st_dev
    seen: set[int] = set()
    total = 0
    for status in _walk(root, device):
        if status.st_ino not in seen:
            seen.add(status.st_ino)
            total += status.st_blocks * _BLOCK
    for status in _held_open():
        if status.st_dev == device and status.st_nlink == 0 and status.st_ino not in seen:
            seen.add(status.st_ino)
            total += status.st_blocks * _BLOCK
    return total


def _others() -> Iterator[str]:
    own = str(os.getpid())
    return (name for name in os.listdir("/proc") if name.isdigit() and name != own)


def _walk(root: str, device: int) -> Iterator[os.stat_result]:
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            entries = list(_scan(directory))
        except FileNotFoundError:
            continue  # removed while we looked
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_dev != device:
                continue
            yield status
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)


def _scan(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        return os.scandir(directory)
    except PermissionError:
        os.chmod(directory, 0o700)  # same owner: a closed directory must not hide what it holds
        return os.scandir(directory)


def _held_open() -> Iterator[os.stat_result]:
    for pid in _others():
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        for number in numbers:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield os.stat(f"/proc/{pid}/fd/{number}")
