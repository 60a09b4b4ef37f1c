"""A tool of the sandbox, called by a person over chat: `/kars_mesh_send {"to_agent": ..., "content": ...}`.

No model takes part, and nothing is possible that the agent could not do itself: the call goes through the
same tool and the same router.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from kars_sdk.chat import Agent, ChatEvent, Delta, Failed, Session, ToolCalled, ToolReturned

CallTool = Callable[[str, dict[str, Any]], Awaitable[str]]
"""Calls a tool by name and returns its answer as text; raises whatever the framework raises."""

_COMMAND = re.compile(r"/(kars_[a-z_]{1,60})(?:\s+(\{.*\}))?\s*", re.DOTALL)


class DirectTools:
    """An agent whose tools can be called by name; everything else it is asked itself."""

    def __init__(self, agent: Agent, call: CallTool) -> None:
        self._agent = agent
        self._call = call

    async def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        """Call the tool that a message names, or let the agent answer."""
        command = _COMMAND.fullmatch(text)
        if command is None:
            async for event in self._agent.reply(session, text):
                yield event
            return
        name = command[1]
        try:
            arguments = json.loads(command[2] or "{}")
        except ValueError:
            yield Failed("tool_arguments_invalid", f"what follows /{name} must be a JSON object")
            return
        yield ToolCalled(name)
        try:
            answer = await self._call(name, arguments)
        except Exception as exc:  # noqa: BLE001 - the boundary: a tool's failure is its answer
            yield ToolReturned(name, ok=False)
            yield Failed("tool_failed", f"{name}: {type(exc).__name__}: {exc}"[:512])
            return
        yield ToolReturned(name, ok=True)
        yield Delta(answer)
