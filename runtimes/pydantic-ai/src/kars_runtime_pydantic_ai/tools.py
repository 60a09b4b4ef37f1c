"""The sandbox's own tools (mesh, and what the router announces) as a toolset of the framework."""

from collections.abc import Awaitable, Callable
from typing import Any

from kars_sdk.mcp.client import ToolFailedError, ToolProcess
from pydantic_ai import Tool
from pydantic_ai.toolsets import FunctionToolset


def toolset(process: ToolProcess) -> FunctionToolset[Any]:
    """Return the tools of a running tool server."""
    tools = [
        Tool.from_schema(
            _caller(process, tool.name),
            name=tool.name,
            description=tool.description or "",
            json_schema=dict(tool.input_schema),
        )
        for tool in process.tools
    ]
    return FunctionToolset(tools)


def _caller(process: ToolProcess, name: str) -> Callable[..., Awaitable[str]]:
    async def call(**arguments: Any) -> str:  # noqa: ANN401 - as the tool's schema has them
        try:
            return await process.call(name, arguments)
        except ToolFailedError as exc:
            return str(exc)  # for the model, which may try something else

    return call
