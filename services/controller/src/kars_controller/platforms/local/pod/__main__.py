"""`python -m kars_controller.platforms.local.pod <directory>`: supervise one pod until told to stop.

Started detached by the platform; outlives the controller. SIGTERM ends the pod gracefully. Exit codes: 0
stopped, 75 another supervisor holds the pod, 1 the spec cannot be read.
"""

import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path

from kars_controller.platforms.base import PodStatus
from kars_controller.platforms.local import spec as specs
from kars_controller.platforms.local.isolation import privileges
from kars_controller.platforms.local.layout import PodDirectory
from kars_controller.platforms.local.pod.control import ControlServer, DialAnswer
from kars_controller.platforms.local.pod.loop import Loop
from kars_controller.platforms.local.pod.supervisor import Supervisor

_ALREADY_SUPERVISED = 75


class _Pod:
    """Ties the control socket to the supervisor."""

    def __init__(self, loop: Loop, directory: PodDirectory, spec: specs.PodSpec) -> None:
        self._loop = loop
        self._directory = directory
        self._stopping = False
        self._control: ControlServer | None = None
        self._supervisor = Supervisor(
            loop,
            directory,
            spec,
            changed=self._changed,
            output=self._output,
        )
        self._control = ControlServer(loop, directory.control, self)

    def start(self) -> None:
        self._supervisor.start()

    def status(self) -> PodStatus:
        return self._supervisor.status()

    def apply(self, plain: object) -> None:
        if not isinstance(plain, dict):
            raise TypeError("not an object")
        if not self._stopping:
            self._supervisor.apply(specs.decode(plain))

    def stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._supervisor.stop(self._loop.stop)

    def dial(self, port: int, answer: DialAnswer) -> None:
        network = self._supervisor.network
        if network is None:
            answer("the pod has no network yet")
        else:
            network.dial(port, answer)

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._directory.control.unlink(missing_ok=True)

    def _changed(self) -> None:
        if self._control is not None:
            self._control.status_changed()

    def _output(self, container: str) -> None:
        if self._control is not None:
            self._control.output_written(container)


def main(arguments: list[str]) -> int:
    """Supervise the pod in the directory named by the one argument."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # whatever whoever started us left open
    directory = PodDirectory(Path(arguments[0]).resolve())
    os.umask(0o077)
    lock = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _ALREADY_SUPERVISED
    try:
        spec = specs.read(directory.spec)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"cannot read {directory.spec}: {error}\n")
        return 1
    privileges.adopt_orphans()
    directory.logs.mkdir(exist_ok=True)
    loop = Loop()
    pod = _Pod(loop, directory, spec)
    loop.on_signal(signal.SIGTERM, pod.stop)
    pod.start()
    _say_ready()
    loop.run()
    pod.close()
    return 0


def _say_ready() -> None:
    """Tell whoever started us, then let go of its pipe."""
    with contextlib.suppress(OSError):
        os.write(1, b"ready\n")
    os.dup2(2, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
