"""The life of a runtime: refuse a wrong sandbox, load, run the task once, serve chat until SIGTERM."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from kars_sdk.chat import Agent, ChatEvent, ChatServer, Session
from kars_sdk.contract import ContractError, RuntimeContract
from kars_sdk.hosting.console import Console
from kars_sdk.hosting.loading import LoadError

EXIT_REFUSED = 78
"""EX_CONFIG: starting again will not help."""

Open = Callable[[RuntimeContract, str | None], AbstractAsyncContextManager[Agent]]
"""Loads the user's agent (contract, entrypoint) and returns it, alive within the context.

Called outside of the event loop's start: may import the framework. Raises LoadError.
"""


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """One runtime."""

    program: str
    """Module that is run, for help."""
    runtime: str
    """Name in the chat's hello."""
    open: Open


class _Logged:
    """An agent whose turns are printed."""

    def __init__(self, agent: Agent, console: Console) -> None:
        self._agent = agent
        self._console = console

    def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        return self._console.follow(self._agent.reply(session, text), session=session.name)


def run(hosted: Hosted, arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code is 78 when the sandbox is not one for this runtime."""
    parser = argparse.ArgumentParser(prog=hosted.program)
    parser.add_argument(
        "entrypoint", nargs="?", help="MODULE or MODULE:ATTR; default: the only agent there is"
    )
    parser.add_argument("--task", help="what the agent does first")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    console = Console(sys.stdout)
    try:
        contract = RuntimeContract.from_environ(os.environ)
        opened = hosted.open(contract, options.entrypoint)
    except (ContractError, LoadError) as exc:
        console.event("refused", reason=exc.reason, message=str(exc))
        return EXIT_REFUSED
    asyncio.run(_serve(hosted, opened, contract, options.task, console=console))
    return 0


async def _serve(
    hosted: Hosted,
    opened: AbstractAsyncContextManager[Agent],
    contract: RuntimeContract,
    task: str | None,
    *,
    console: Console,
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with opened as agent:
        logged = _Logged(agent, console)
        server = ChatServer(logged, name=contract.sandbox, runtime=hosted.runtime)
        port = await server.start(contract.chat_port)
        console.event("serving", port=port, model=contract.model)
        first = asyncio.create_task(_run_task(logged, task, console), name="task")
        try:
            await stopping.wait()
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await server.close()
            console.event("stopped")


async def _run_task(agent: _Logged, task: str | None, console: Console) -> None:
    if not task:
        return
    console.event("task_started", text=task)
    async for _ in agent.reply(Session("task"), task):
        pass
