"""`python -m kars_runtime_pydantic_ai [MODULE[:ATTR]] [--task TEXT]`.

Refuses an unknown runtime contract, loads the agent from /sandbox/agent, runs the task once if there is one,
and serves chat until SIGTERM. A task that is refused or fails is printed; the agent goes on serving chat.
"""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from kars_sdk.chat import Agent
from kars_sdk.contract import RuntimeContract
from kars_sdk.hosting import DirectTools, Hosted, run

if TYPE_CHECKING:
    import pydantic_ai


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code is 78 when the sandbox is not one for this runtime."""
    return run(Hosted(program="kars_runtime_pydantic_ai", runtime="pydantic-ai", open=_open), arguments)


def _open(contract: RuntimeContract, entrypoint: str | None) -> AbstractAsyncContextManager[Agent]:
    # Imported after the contract: the framework costs half a second that a refusal need not wait for.
    from kars_runtime_pydantic_ai.loading import load_agent

    return _alive(load_agent(contract.agent_code, entrypoint))


@asynccontextmanager
async def _alive(agent: "pydantic_ai.Agent[Any, Any]") -> AsyncIterator[Agent]:
    from kars_runtime_pydantic_ai.adapter import PydanticAiAgent

    if not os.environ.get("KARS_MESH_PEER"):
        yield PydanticAiAgent(agent)
        return
    from kars_sdk.mcp.client import open_tools

    from kars_runtime_pydantic_ai.tools import toolset

    async with open_tools() as tools:
        yield DirectTools(PydanticAiAgent(agent, (toolset(tools),)), tools.call)


if __name__ == "__main__":
    sys.exit(main())
