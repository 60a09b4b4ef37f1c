"""The whole set for tests that block: world, names, origins, service and Envoy, with a loop in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kars_egress.blocklist.feeds import Fetcher
from kars_egress.policy.entries import Entry
from kars_egress.policy.sandboxes import SandboxId

from kars_egress_testkit import service, world
from kars_egress_testkit.names import NameServer
from kars_egress_testkit.origins import Origins
from kars_egress_testkit.service import DEADLINE_S, OTHER, SANDBOX, Agent, Egress

_Result = TypeVar("_Result")


class Scene:
    """Everything that a test needs."""

    def __init__(
        self, egress: Egress, loop: asyncio.AbstractEventLoop, directory: Path, parts: _Parts
    ) -> None:
        self.egress = egress
        self.directory = directory
        self.world = parts.internet
        self.names = parts.names
        self.origins = parts.origins
        self.agent = Agent(parts.inside)
        self._loop = loop

    def call(self, make: Callable[[], Awaitable[_Result]]) -> _Result:
        """Run a coroutine in the service's loop."""

        async def run() -> _Result:
            return await make()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def allow(self, *entries: Entry, sandbox: SandboxId = SANDBOX) -> None:
        """Apply an allowlist to this sandbox and wait until Envoy has it."""
        self.call(lambda: self.egress.allow(self.agent.namespace, *entries, sandbox=sandbox))

    def change(self, what: Callable[[], object], sandbox: SandboxId = SANDBOX) -> None:
        """Change policy in the service's loop and wait until Envoy has it."""

        async def run() -> None:
            what()
            await self.egress.in_force(sandbox)

        self.call(run)

    def other_agent_is_served(self) -> bool:
        """Give a second sandbox the same policy and let it fetch."""
        other = world.sandbox()
        try:
            entries = (Entry.build("api.allowed.test", scheme="http"),)
            self.call(lambda: self.egress.allow(other, *entries, sandbox=OTHER))
            return Agent(other).http("api.allowed.test").status == 200
        finally:
            self.call(self._remove_other)
            other.close()

    async def _remove_other(self) -> None:
        self.egress.app.enforcement.remove(OTHER)

    def denied(self, **wanted: object) -> dict[str, Any]:
        """Wait for a denial in the audit log that has these fields; returns the last one."""
        return self.recorded(("egress.denied", "egress.tunnel.denied"), **wanted)

    def recorded(self, kinds: tuple[str, ...], **wanted: object) -> dict[str, Any]:
        """Wait for a record of these kinds that has these fields; returns the last one."""
        found: list[dict[str, Any]] = []

        async def look() -> list[dict[str, Any]]:
            records = (dict(record) for record in self.egress.app.audit.records())
            return [
                record
                for record in records
                if record["type"] in kinds
                and all(record.get(name) == value for name, value in wanted.items())
            ]

        def there() -> bool:
            found[:] = self.call(look)
            return bool(found)

        wait(there, f"{kinds} with {wanted} is in the audit log")
        return found[-1]


class _Parts:
    def __init__(self, stack: contextlib.ExitStack, directory: Path, *, origins: bool) -> None:
        self.internet = world.internet()
        stack.callback(self.internet.close)
        self.inside = world.sandbox()
        stack.callback(self.inside.close)
        self.names = NameServer(self.internet)
        stack.callback(self.names.close)
        self.origins = Origins(self.internet, directory, listen=origins)
        stack.callback(self.origins.close)


@contextlib.contextmanager
def scene(
    directory: Path,
    *,
    fetcher: Fetcher | None = None,
    feeds_file: Path | None = None,
    gateway_address: str | None = None,
    origins: bool = True,
    credentials_file: Path | None = None,
) -> Iterator[Scene]:
    """Run everything for the length of a block; `origins` False leaves the ports to others."""
    with contextlib.ExitStack() as stack:
        parts = _Parts(stack, directory, origins=origins)
        thread = _LoopThread()
        stack.callback(thread.stop)
        egress = thread.enter(
            lambda: service.serving(
                directory,
                parts.internet,
                fetcher=fetcher,
                feeds_file=feeds_file,
                gateway_address=gateway_address,
                credentials_file=credentials_file,
            )
        )
        yield Scene(egress, thread.loop, directory, parts)


class _LoopThread:
    """A loop in a thread, and one async context that is left when it stops."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="egress loop")
        self._thread.start()
        self._context: Any = None
        self._leave: asyncio.Event | None = None
        self._task: Any = None

    def enter(self, make: Callable[[], contextlib.AbstractAsyncContextManager[Egress]]) -> Egress:
        entered: Any = asyncio.run_coroutine_threadsafe(self._start(make), self.loop)
        egress: Egress = entered.result(30)
        return egress

    def stop(self) -> None:
        if self._task is not None:
            asyncio.run_coroutine_threadsafe(self._finish(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _start(self, make: Callable[[], contextlib.AbstractAsyncContextManager[Egress]]) -> Egress:
        # A task group must be left by the task that entered it.
        ready: asyncio.Future[Egress] = self.loop.create_future()
        self._leave = asyncio.Event()
        self._task = asyncio.create_task(self._hold(make, ready), name="egress")
        done, _ = await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._task in done:
            await self._task
        return await ready

    async def _hold(
        self,
        make: Callable[[], contextlib.AbstractAsyncContextManager[Egress]],
        ready: asyncio.Future[Egress],
    ) -> None:
        async with make() as egress:
            ready.set_result(egress)
            assert self._leave is not None
            await self._leave.wait()

    async def _finish(self) -> None:
        assert self._leave is not None
        self._leave.set()
        await self._task


def wait(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, at most the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.02)
