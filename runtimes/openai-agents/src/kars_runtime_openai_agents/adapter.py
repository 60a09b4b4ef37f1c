"""One turn of an OpenAI Agents SDK agent as chat events. The session's state is its input list."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import openai
from agents import Agent, Runner
from agents.exceptions import AgentsException
from agents.items import ToolCallItem, ToolCallOutputItem
from agents.stream_events import RawResponsesStreamEvent, RunItemStreamEvent, StreamEvent
from kars_sdk.chat import ChatEvent, Delta, Failed, Session, ToolCalled, ToolReturned

_CODE = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MAX_TURNS = 30


class OpenAIAgent:
    """The user's agent, spoken to through `kars_sdk.chat`."""

    def __init__(self, agent: Agent[Any]) -> None:
        self._agent = agent

    async def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        """Run one turn; a refusal by the router ends it with the router's own reason."""
        history = session.state if isinstance(session.state, list) else []
        calls: dict[str, str] = {}
        streamed = False
        result = Runner.run_streamed(
            self._agent, [*history, {"role": "user", "content": text}], max_turns=_MAX_TURNS
        )
        try:
            async for event in result.stream_events():
                for said in _chat_events(event, calls):
                    streamed = streamed or isinstance(said, Delta)
                    yield said
        except (AgentsException, openai.OpenAIError) as exc:
            yield failure(exc)
            return
        finally:
            result.cancel()
        session.state = result.to_input_list()
        if not streamed and result.final_output:
            yield Delta(str(result.final_output))


def failure(exc: Exception) -> Failed:
    """Return what a failed run tells people: the refusal's code and sentence where there is one."""
    if isinstance(exc, openai.APIStatusError):
        code, message = _error_body(exc.body)
        return Failed(
            code or f"http_{exc.status_code}", message or f"the model call ended with {exc.status_code}"
        )
    if isinstance(exc, openai.APIError):
        code, message = _error_body(exc.body)
        return Failed(code or "model_call_failed", message or exc.message)
    return Failed("agent_run_failed", f"{type(exc).__name__}: {exc}"[:512])


def _chat_events(event: StreamEvent, calls: dict[str, str]) -> list[ChatEvent]:
    if isinstance(event, RawResponsesStreamEvent):
        text = getattr(event.data, "delta", None)
        said = event.data.type == "response.output_text.delta" and isinstance(text, str) and text
        return [Delta(text)] if said and isinstance(text, str) else []
    if not isinstance(event, RunItemStreamEvent):
        return []
    if isinstance(event.item, ToolCallItem):
        name, call_id = _field(event.item.raw_item, "name"), _field(event.item.raw_item, "call_id")
        calls[call_id] = name
        return [ToolCalled(name)]
    if isinstance(event.item, ToolCallOutputItem):
        return [ToolReturned(calls.get(_field(event.item.raw_item, "call_id"), ""), ok=True)]
    return []


def _field(item: object, name: str) -> str:
    value = item.get(name) if isinstance(item, dict) else getattr(item, name, "")
    return value if isinstance(value, str) else ""


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
