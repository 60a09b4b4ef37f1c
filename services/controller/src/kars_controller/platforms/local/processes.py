"""Waiting for processes by descriptor: nothing is polled, and a reused pid is never mistaken."""

import asyncio
import contextlib
import os
import signal
from types import TracebackType
from typing import Self


class Handle:
    """A process by pidfd; knows nothing when it had ended already."""

    def __init__(self, pid: int) -> None:
        self._descriptor: int | None = None
        with contextlib.suppress(ProcessLookupError):
            self._descriptor = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    async def ended(self) -> None:
        """Wait until the process has ended (it need not be our child)."""
        if self._descriptor is None:
            return
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._descriptor, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._descriptor)

    def kill(self) -> None:
        """Kill it, if it lives."""
        if self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


async def reap(pid: int) -> None:
    """Wait for a child to end and take its status."""
    with Handle(pid) as child:
        await child.ended()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # noqa: ASYNC222  # it has ended: this does not wait
