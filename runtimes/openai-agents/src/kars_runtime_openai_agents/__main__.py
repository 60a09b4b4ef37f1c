"""`python -m kars_runtime_openai_agents [MODULE[:ATTR]] [--task TEXT]`.

Refuses an unknown runtime contract, loads the agent from /sandbox/agent, runs the task once if there is one,
and serves chat until SIGTERM. The sandbox's tools come over MCP, which the framework speaks by itself.
"""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from kars_sdk.chat import Agent
from kars_sdk.contract import RuntimeContract
from kars_sdk.hosting import DirectTools, Hosted, load_object, run

if TYPE_CHECKING:
    import agents


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code is 78 when the sandbox is not one for this runtime."""
    return run(Hosted(program="kars_runtime_openai_agents", runtime="openai-agents", open=_open), arguments)


def _open(contract: RuntimeContract, entrypoint: str | None) -> AbstractAsyncContextManager[Agent]:
    # Imported after the contract: the framework costs a second that a refusal need not wait for.
    import agents

    from kars_runtime_openai_agents import settings

    settings.apply()
    return _alive(load_object(contract.agent_code, entrypoint, agents.Agent))


@asynccontextmanager
async def _alive(agent: "agents.Agent[Any]") -> AsyncIterator[Agent]:
    from kars_runtime_openai_agents.adapter import OpenAIAgent

    if not os.environ.get("KARS_MESH_PEER"):
        yield OpenAIAgent(agent)
        return
    from kars_runtime_openai_agents.tools import call, tool_server

    async with tool_server() as server:
        agent.mcp_servers.append(server)
        yield DirectTools(OpenAIAgent(agent), lambda name, arguments: call(server, name, arguments))


if __name__ == "__main__":
    sys.exit(main())
