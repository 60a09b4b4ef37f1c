"""The tool server as a child of the runtime: `python -m kars_sdk.mcp` on pipes, for frameworks without MCP.

One child a sandbox: it holds the mesh's sealed state, which has one writer.
"""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mcp import ClientSession, StdioServerParameters, stdio_client, types

MODULE = "kars_sdk.mcp"
_CALL_S = 700.0
"""Longer than the longest wait that a tool offers."""


def parameters() -> StdioServerParameters:
    """Return how the server is started: with our interpreter and our environment, which holds no secret."""
    return StdioServerParameters(command=sys.executable, args=["-m", MODULE], env=dict(os.environ))


class ToolFailedError(Exception):
    """A tool call failed; the text is the server's, for whoever called."""


class ToolProcess:
    """A running tool server. Use `open_tools`."""

    def __init__(self, session: ClientSession, tools: Sequence[types.Tool]) -> None:
        self._session = session
        self.tools = tuple(tools)

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Call a tool and return its text.

        Raises:
            ToolFailedError: the server says that the call failed.
        """
        return text_of(await self._session.call_tool(name, arguments, read_timeout_seconds=_CALL_S))


def text_of(result: types.CallToolResult) -> str:
    """Return the text of a result.

    Raises:
        ToolFailedError: the server says that the call failed.
    """
    text = "\n".join(part.text for part in result.content if isinstance(part, types.TextContent))
    if result.is_error:
        raise ToolFailedError(text)
    return text


@asynccontextmanager
async def open_tools() -> AsyncIterator[ToolProcess]:
    """Run the tool server for as long as the context lasts."""
    async with stdio_client(parameters()) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        listed = await session.list_tools()
        yield ToolProcess(session, listed.tools)
