"""The sandbox's own tools, over MCP as the framework has it."""

from typing import Any

from agents.mcp import MCPServerStdio
from kars_sdk.mcp.client import parameters, text_of

_CALL_S = 700.0
"""Longer than the longest wait that a tool offers."""


def tool_server() -> MCPServerStdio:
    """Return the tool server; it runs within its own context."""
    started = parameters()
    return MCPServerStdio(
        {"command": started.command, "args": list(started.args), "env": dict(started.env or {})},
        cache_tools_list=True,
        name="kars",
        client_session_timeout_seconds=_CALL_S,
    )


async def call(server: MCPServerStdio, name: str, arguments: dict[str, Any]) -> str:
    """Call a tool and return its text.

    Raises:
        ToolFailedError: the server says that the call failed.
    """
    return text_of(await server.call_tool(name, arguments))
