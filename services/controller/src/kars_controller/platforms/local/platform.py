"""The local platform: every sandbox is a supervised pod of processes on this machine.

Writes plans into pod directories, starts supervisors, listens to them. Keeps no state that a restart
would lose: running pods are found again by their control sockets. Refuses to know how a process is
contained.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from kars_common.errors import NotFoundError, UnavailableError

from kars_controller.platforms.base import HostReport, PodPlan, PodStatus, SandboxKey
from kars_controller.platforms.local import (
    client,
    doctor,
    files,
    layout,
    leftovers,
    log_files,
    processes,
    python_runtime,
    spawning,
    validation,
)
from kars_controller.platforms.local import spec as specs
from kars_controller.platforms.local.isolation import quota

_LOG = logging.getLogger(__name__)
_STOP_MARGIN_S = 15.0
_SUPERVISOR_EXIT_S = 5.0


class LocalPlatform:
    """Implements `base.Platform`. Needs a running loop; `close` lets go of the pods without stopping them."""

    def __init__(self, home: Path, *, python: Path | None = None) -> None:
        """Use the pods below a state directory.

        Args:
            home: kars' state directory.
            python: the interpreter that runs routers; this process's own when None.
        """
        self._home = home
        self._pods = home / "pods"
        self._python = python or Path(sys.executable)
        self._watches: dict[SandboxKey, client.PodWatch] = {}
        self._locks: dict[SandboxKey, asyncio.Lock] = {}
        self._reaping: set[asyncio.Task[None]] = set()
        self._subscribers: set[asyncio.Queue[SandboxKey]] = set()
        self._adopted: asyncio.Task[None] | None = None

    async def apply(self, plan: PodPlan) -> None:
        """See `base.Platform.apply`."""
        await self._ready()
        await asyncio.to_thread(validation.check_plan, plan, self._home)
        async with self._lock(plan.key):
            if await self._belongs_to_another(plan):
                await self._delete(plan.key)
            directory = layout.PodDirectory.of(self._pods, plan.key)
            spec = await asyncio.to_thread(self._write, directory, plan)
            if await self._live(directory) is not None:
                await self._tell(directory, spec)
            else:
                await self._start(directory)

    async def delete(self, key: SandboxKey) -> None:
        """See `base.Platform.delete`."""
        await self._ready()
        validation.check_key(key)
        async with self._lock(key):
            await self._delete(key)

    async def observe(self, key: SandboxKey) -> PodStatus | None:
        """See `base.Platform.observe`."""
        await self._ready()
        watch = self._watches.get(key)
        return watch.status if watch is not None else None

    async def changes(self) -> AsyncIterator[SandboxKey]:
        """See `base.Platform.changes`."""
        await self._ready()
        queue: asyncio.Queue[SandboxKey] = asyncio.Queue()  # bounded by _changed: a key waits at most once
        for key in self._watches:
            queue.put_nowait(key)
        self._subscribers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._subscribers.discard(queue)

    async def logs(
        self, key: SandboxKey, container: str, *, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """See `base.Platform.logs`."""
        await self._ready()
        validation.check_key(key)
        if container not in layout.CONTAINERS:
            raise NotFoundError(
                "container_unknown", f"{container!r} is none of {', '.join(layout.CONTAINERS)}"
            )
        log = layout.PodDirectory.of(self._pods, key).log(container)
        if not log.exists():
            raise NotFoundError("sandbox_not_found", f"no logs of {key}")
        follower = log_files.Follower(log) if follow else None
        try:
            if text := await asyncio.to_thread(log_files.tail, log, tail):
                yield text
            watch = self._watches.get(key)
            while follower is not None and watch is not None:
                if text := follower.read():
                    yield text
                if watch.ended.is_set():
                    return
                await watch.output(container)
        finally:
            if follower is not None:
                follower.close()

    async def dial(self, key: SandboxKey, port: int) -> socket.socket:
        """See `base.Platform.dial`."""
        directory = await self._running(key)
        answer, descriptors = await client.request(directory.control, {"op": "dial", "port": port})
        if not descriptors:
            raise UnavailableError(
                "port_closed", f"{key} port {port}: {answer.get('error', 'no connection')}"
            )
        connected = socket.socket(fileno=descriptors[0])
        connected.settimeout(0)
        return connected

    async def host_report(self) -> HostReport:
        """See `base.Platform.host_report`."""
        return await doctor.report()

    async def close(self) -> None:
        """See `base.Platform.close`."""
        if self._adopted is not None:
            self._adopted.cancel()
            await asyncio.wait([self._adopted])
        for watch in list(self._watches.values()):
            await watch.close()
        for reaping in self._reaping:
            reaping.cancel()
        if self._reaping:
            await asyncio.wait(self._reaping)

    # -- supervisors

    async def _ready(self) -> None:
        """Find running pods, once."""
        if self._adopted is None:
            self._adopted = asyncio.create_task(self._adopt(), name="adopt running pods")
        await asyncio.shield(self._adopted)

    async def _adopt(self) -> None:
        for control in sorted(self._pods.glob("*/*/control.sock")):
            directory = layout.PodDirectory(control.parent)
            try:
                await self._watch(directory)
            except UnavailableError:
                _LOG.info("pod has no live supervisor", extra={"sandbox": str(directory.key)})

    async def _live(self, directory: layout.PodDirectory) -> client.PodWatch | None:
        """Return the watch of a supervisor that lives.

        A supervisor drops a watcher that reads too slowly. Word of it is lost then, not the pod: taken for
        dead, it would keep its old plan, or lose its directory while it runs.
        """
        watch = self._watches.get(directory.key)
        if watch is not None and watch.status is not None:
            return watch
        if not directory.control.exists():
            return None
        try:
            await self._watch(directory)
        except UnavailableError:
            return None
        return self._watches[directory.key]

    async def _watch(self, directory: layout.PodDirectory) -> None:
        key = directory.key
        watch = client.PodWatch(directory.control, lambda: self._changed(key))
        await watch.start()
        previous = self._watches.pop(key, None)
        if previous is not None:
            await previous.close()
        self._watches[key] = watch
        self._changed(key)

    def _write(self, directory: layout.PodDirectory, plan: PodPlan) -> specs.PodSpec:
        argv = (str(self._python), "-m", "kars_router")
        spec = specs.from_plan(plan, argv, python_runtime.python_mounts(self._python))
        files.write_pod(directory, spec, plan.router.files)
        return spec

    async def _start(self, directory: layout.PodDirectory) -> None:
        self._reap_later(await spawning.spawn(directory, os.environ))
        await self._watch(directory)

    async def _tell(self, directory: layout.PodDirectory, spec: specs.PodSpec) -> None:
        answer, _ = await client.request(directory.control, {"op": "apply", "spec": specs.encode(spec)})
        if "error" in answer:
            raise UnavailableError("supervisor_unavailable", f"the supervisor refused: {answer['error']}")

    async def _belongs_to_another(self, plan: PodPlan) -> bool:
        directory = layout.PodDirectory.of(self._pods, plan.key)
        try:
            kept = specs.read(directory.spec)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            return True  # not ours to understand: start from nothing
        return kept.uid != plan.uid

    async def _delete(self, key: SandboxKey) -> None:
        directory = layout.PodDirectory.of(self._pods, key)
        live = await self._live(directory)
        if live is not None:
            await self._stop(directory, live)
        watch = self._watches.pop(key, None)
        if watch is not None:
            await watch.close()
        await asyncio.to_thread(_remove, directory)
        self._changed(key)

    async def _stop(self, directory: layout.PodDirectory, watch: client.PodWatch) -> None:
        grace = specs.read(directory.spec).termination_grace_s
        with processes.Handle(watch.supervisor_pid) as supervisor:
            try:
                await client.request(directory.control, {"op": "stop"})
                async with asyncio.timeout(2 * grace + _STOP_MARGIN_S):
                    await supervisor.ended()
            except (UnavailableError, TimeoutError):
                _LOG.warning(
                    "supervisor did not stop its pod, killing it", extra={"sandbox": str(directory.key)}
                )
                supervisor.kill()  # the kernel ends its containers with it
                async with asyncio.timeout(_SUPERVISOR_EXIT_S):
                    await supervisor.ended()

    async def _running(self, key: SandboxKey) -> layout.PodDirectory:
        await self._ready()
        watch = self._watches.get(key)
        if watch is None or watch.status is None:
            raise NotFoundError("sandbox_not_found", f"{key} does not run")
        return layout.PodDirectory.of(self._pods, key)

    def _reap_later(self, pid: int) -> None:
        reaping = asyncio.create_task(processes.reap(pid), name=f"reap supervisor {pid}")
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)

    # -- bookkeeping

    def _lock(self, key: SandboxKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _changed(self, key: SandboxKey) -> None:
        for queue in self._subscribers:
            queue.put_nowait(key)


def _remove(directory: layout.PodDirectory) -> None:
    quota.unmount(directory.workspace, lazily=True)
    leftovers.clear(directory)
    files.remove_pod(directory)
