"""Writing a pod's directory: the spec, and the router's files with their owner and mode; and removing it all.

A file is replaced only when its content differs, and never seen half-written.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from kars_controller.platforms.base import ROUTER_UID, RouterFile
from kars_controller.platforms.local import spec as specs
from kars_controller.platforms.local.layout import PodDirectory

_FRESH = ".fresh"


def write_pod(directory: PodDirectory, spec: specs.PodSpec, files: tuple[RouterFile, ...]) -> None:
    """Write everything the supervisor reads. Blocking.

    Raises:
        OSError: the state directory cannot be written.
    """
    for path in (directory.path.parent, directory.path, directory.logs, directory.router_state):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _give_to_router(directory.router_state)
    for file in files:
        _place(directory.router_state, file)
    _replace(directory.spec, json.dumps(specs.encode(spec), indent=1).encode(), 0o600)


def remove_pod(directory: PodDirectory) -> None:
    """Remove the directory, also what the agent made unreadable. Blocking, idempotent.

    Raises:
        OSError: something could not be removed.
    """
    if directory.path.exists():
        shutil.rmtree(directory.path, onerror=_open_up_and_retry)
    if directory.path.parent.exists() and not any(directory.path.parent.iterdir()):
        directory.path.parent.rmdir()


def _place(state: Path, file: RouterFile) -> None:
    target = state / file.path
    for parent in reversed(target.relative_to(state).parents[:-1]):
        (state / parent).mkdir(mode=0o700, exist_ok=True)
        _give_to_router(state / parent)
    if not _is(target, file.content, file.mode):
        _replace(target, file.content, file.mode, _give_to_router)


def _is(path: Path, content: bytes, mode: int) -> bool:
    try:
        return stat.S_IMODE(path.lstat().st_mode) == mode and path.read_bytes() == content
    except OSError:
        return False


def _replace(target: Path, content: bytes, mode: int, give: Callable[[Path], None] = lambda _: None) -> None:
    fresh = target.with_name(target.name + _FRESH)
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    give(fresh)
    fresh.replace(target)


def _give_to_router(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, ROUTER_UID, ROUTER_UID, follow_symlinks=False)


def _open_up_and_retry(_function: object, path: str, _error: object) -> None:
    for place in (os.path.dirname(path), path):
        if not os.path.islink(place):
            os.chmod(place, 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
