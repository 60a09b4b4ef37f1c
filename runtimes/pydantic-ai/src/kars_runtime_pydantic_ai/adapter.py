"""One turn of a Pydantic AI agent as chat events. The session's state is the framework's message history."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from kars_sdk.chat import ChatEvent, Delta, Failed, Session, ToolCalled, ToolReturned
from pydantic_ai import (
    Agent,
    AgentRunResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPartDelta,
)
from pydantic_ai.exceptions import AgentRunError, ModelAPIError, ModelHTTPError
from pydantic_ai.messages import ModelMessage, RetryPromptPart, TextPart
from pydantic_ai.toolsets import AbstractToolset

_CODE = re.compile(r"[a-z][a-z0-9_]{0,62}")


class PydanticAiAgent:
    """The user's agent, spoken to through `kars_sdk.chat`."""

    def __init__(self, agent: Agent[Any, Any], toolsets: Sequence[AbstractToolset[Any]] = ()) -> None:
        """Take the user's agent, and tools of the sandbox that it gets besides its own."""
        self._agent = agent
        self._toolsets = tuple(toolsets)

    async def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        """Run one turn; a refusal by the router ends it with the router's own reason."""
        history = cast("Sequence[ModelMessage] | None", session.state)
        streamed = False
        try:
            async with self._agent.run_stream_events(
                text, message_history=history, toolsets=self._toolsets
            ) as events:
                async for event in events:
                    if isinstance(event, AgentRunResultEvent):
                        session.state = event.result.all_messages()
                        if not streamed and event.result.output:
                            yield Delta(str(event.result.output))
                        continue
                    for said in _chat_events(event):
                        streamed = streamed or isinstance(said, Delta)
                        yield said
        except AgentRunError as exc:
            yield failure(exc)


def failure(exc: AgentRunError) -> Failed:
    """Return what a failed run tells people: the refusal's code and sentence where there is one."""
    if isinstance(exc, ModelHTTPError):
        code, message = _error_body(exc.body)
        return Failed(
            code or f"http_{exc.status_code}", message or f"the model call ended with {exc.status_code}"
        )
    if isinstance(exc, ModelAPIError):
        code, message = _error_body(getattr(exc.__cause__, "body", None))
        return Failed(code or "model_call_failed", message or exc.message)
    return Failed("agent_run_failed", f"{type(exc).__name__}: {exc}")


def _chat_events(event: object) -> list[ChatEvent]:
    match event:
        case PartStartEvent(part=TextPart(content=text)) if text:
            return [Delta(text)]
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)) if text:
            return [Delta(text)]
        case FunctionToolCallEvent():
            return [ToolCalled(event.part.tool_name)]
        case FunctionToolResultEvent():
            ok = not isinstance(event.part, RetryPromptPart)
            return [ToolReturned(event.part.tool_name or "", ok=ok)]
        case _:
            return []


def _error_body(body: object) -> tuple[str, str]:
    """Read `{"error": {...}}`, or the inner object that the OpenAI client passes on."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return "", ""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    if not isinstance(body, dict):
        return "", ""
    code, message = body.get("code"), body.get("message")
    return (
        code if isinstance(code, str) and _CODE.fullmatch(code) else "",
        message if isinstance(message, str) else "",
    )
