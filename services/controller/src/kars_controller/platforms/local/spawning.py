"""Starting a pod supervisor that outlives this process.

posix_spawn in a session of its own, with a bare environment: whatever keys the controller was started
with stay here. The supervisor says `ready` on its standard output when its control socket answers.
"""

import asyncio
import os
import sys
from collections.abc import Mapping

from kars_common.errors import UnavailableError

from kars_controller.platforms.local.layout import PodDirectory

READY = b"ready\n"
_TIMEOUT_S = 15.0
# PYTHONPATH: the supervisor imports this package from where this process did. It ends there: the environments
# of the router and of the agent are written afresh (pod/blueprints.py), and neither names it.
_PASSED_ON = ("PATH", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
_LAST_WORDS = 400


async def spawn(directory: PodDirectory, environment: Mapping[str, str]) -> int:
    """Start a supervisor for a written pod directory and wait until it answers; return its pid.

    Raises:
        UnavailableError: `supervisor_unavailable`, with its last words.
    """
    log = directory.logs / "supervisor.log"
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    arguments = [sys.executable, "-m", "kars_controller.platforms.local.pod", str(directory.path)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        pid = os.posix_spawn(  # noqa: ASYNC221  # returns once the child executes
            sys.executable,
            arguments,
            {name: environment[name] for name in _PASSED_ON if name in environment},
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, write_end, 1),
                (os.POSIX_SPAWN_OPEN, 2, str(log), flags, 0o600),
            ],
        )
    except OSError as error:
        os.close(read_end)
        raise UnavailableError("supervisor_unavailable", f"cannot start a supervisor: {error}") from error
    finally:
        os.close(write_end)
    if await _first_words(read_end) != READY:
        said = log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip()
        raise UnavailableError("supervisor_unavailable", f"the pod's supervisor did not start: {said}")
    return pid


async def _first_words(read_end: int) -> bytes:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def readable() -> None:
        if not done.done():
            done.set_result(os.read(read_end, len(READY)))

    loop.add_reader(read_end, readable)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await done
    except TimeoutError:
        return b""
    finally:
        loop.remove_reader(read_end)
        os.close(read_end)
