"""The pods of this platform, asked to stop over their own control sockets: no controller is needed."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_STOP_S = 45.0


def directories(home: Path) -> list[Path]:
    """Return the folders of all pods, running or not."""
    return sorted(path.parent for path in (home / "pods").glob("*/*/spec.json"))


def running(directory: Path) -> bool:
    """Whether a supervisor holds the pod."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def stop_all(home: Path) -> Iterator[tuple[str, bool]]:
    """Stop every running pod and yield its name and whether it ended in time."""
    asked = [directory for directory in directories(home) if running(directory) and _ask_to_stop(directory)]
    deadline = time.monotonic() + _STOP_S
    for directory in asked:
        while running(directory) and time.monotonic() < deadline:
            time.sleep(0.05)  # the lock of a process that is not our child gives no event
        yield f"{directory.parent.name}/{directory.name}", not running(directory)


def _ask_to_stop(directory: Path) -> bool:
    # The address goes over /proc/self/fd: a socket's name holds only 107 bytes.
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(f"/proc/self/fd/{folder}/control.sock")
            connection.sendall(json.dumps({"op": "stop"}).encode() + b"\n")
            with contextlib.suppress(TimeoutError):
                connection.recv(1024)
    except OSError:
        return False  # it ended meanwhile, or belongs to somebody else
    finally:
        os.close(folder)
    return True
