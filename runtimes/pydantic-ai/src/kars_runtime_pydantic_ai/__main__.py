"""`python -m kars_runtime_pydantic_ai [MODULE[:ATTR]] [--task TEXT]`.

Refuses an unknown runtime contract, loads the agent from /sandbox/agent, runs the task once if there is one,
and serves chat until SIGTERM. A task that is refused or fails is printed; the agent goes on serving chat.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence

from kars_sdk.chat import Agent, ChatEvent, ChatServer, Session
from kars_sdk.contract import ContractError, RuntimeContract

from kars_runtime_pydantic_ai.console import Console

EXIT_REFUSED = 78
"""EX_CONFIG: starting again will not help."""


class _Logged:
    """An agent whose turns are printed."""

    def __init__(self, agent: Agent, console: Console) -> None:
        self._agent = agent
        self._console = console

    def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        return self._console.follow(self._agent.reply(session, text), session=session.name)


async def _serve(agent: Agent, contract: RuntimeContract, task: str | None, console: Console) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    logged = _Logged(agent, console)
    server = ChatServer(logged, name=contract.sandbox, runtime="pydantic-ai")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code is 78 when the sandbox is not one for this runtime."""
    parser = argparse.ArgumentParser(prog="kars_runtime_pydantic_ai", description=__doc__)
    parser.add_argument(
        "entrypoint", nargs="?", help="MODULE or MODULE:ATTR; default: the only agent there is"
    )
    parser.add_argument("--task", help="what the agent does first")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    console = Console(sys.stdout)
    try:
        contract = RuntimeContract.from_environ(os.environ)
    except ContractError as exc:
        console.event("refused", reason=exc.reason, message=str(exc))
        return EXIT_REFUSED
    # Imported after the contract: the framework costs half a second that a refusal need not wait for.
    from kars_runtime_pydantic_ai.adapter import PydanticAiAgent
    from kars_runtime_pydantic_ai.loading import LoadError, load_agent

    try:
        agent = load_agent(contract.agent_code, options.entrypoint)
    except LoadError as exc:
        console.event("refused", reason=exc.reason, message=str(exc))
        return EXIT_REFUSED
    asyncio.run(_serve(PydanticAiAgent(agent), contract, options.task, console))
    return 0


if __name__ == "__main__":
    sys.exit(main())
