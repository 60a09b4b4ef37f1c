"""The wire format of chat completions: requests read, answers and streams built.

Knows shapes, not what to say. An `Answer` is either text or tool calls; both forms of delivery (one object,
or server-sent events in small pieces) are made from the same answer.
"""

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class BadRequestError(ValueError):
    """The request is no chat completion; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call that the model asks for."""

    name: str
    arguments: Mapping[str, object]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:12]}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model says: text, or tool calls."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()

    @property
    def finish_reason(self) -> str:
        """Why the answer ends."""
        return "tool_calls" if self.calls else "stop"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, as far as a model needs it."""

    model: str
    messages: Sequence[Json]
    tools: Sequence[Json]
    stream: bool
    include_usage: bool
    max_tokens: int | None

    @classmethod
    def parse(cls, body: bytes) -> "Request":
        """Read a request body.

        Raises:
            BadRequestError: not JSON, or without model or messages.
        """
        try:
            document = json.loads(body)
        except ValueError as exc:
            raise BadRequestError("the body is not JSON") from exc
        if not isinstance(document, dict) or not isinstance(document.get("model"), str):
            raise BadRequestError("model is required")
        messages = document.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise BadRequestError("messages must be a list of objects")
        options = document.get("stream_options") or {}
        return cls(
            model=document["model"],
            messages=messages,
            tools=[tool for tool in document.get("tools") or () if isinstance(tool, dict)],
            stream=bool(document.get("stream")),
            include_usage=bool(options.get("include_usage")),
            max_tokens=document.get("max_completion_tokens") or document.get("max_tokens"),
        )

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools on offer."""
        return [str((tool.get("function") or {}).get("name", "")) for tool in self.tools]


def text_of(content: object) -> str:
    """Return the text of a message's content, whatever its form."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def usage(request: Request, answer: Answer) -> dict[str, int]:
    """Return token counts; four characters are taken for one token."""
    prompt = len(json.dumps([list(request.messages), list(request.tools)])) // 4 + 1
    said = len(answer.text) + sum(len(call.name) + len(json.dumps(call.arguments)) for call in answer.calls)
    completion = said // 4 + 1
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def whole(request: Request, answer: Answer) -> Json:
    """Return the answer as one object."""
    message: Json = {"role": "assistant", "content": answer.text or None}
    if answer.calls:
        message["tool_calls"] = [_call(call, json.dumps(call.arguments)) for call in answer.calls]
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
    return {**_envelope(request, "chat.completion"), "choices": [choice], "usage": usage(request, answer)}


def events(request: Request, answer: Answer) -> Iterator[bytes]:
    """Yield the answer as server-sent events, the last one [DONE]."""
    envelope = _envelope(request, "chat.completion.chunk")

    def event(delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _sse({**envelope, "choices": [choice]})

    yield event({"role": "assistant", "content": ""})
    for word in re.findall(r"\S*\s*", answer.text):
        if word:
            yield event({"content": word})
    for index, call in enumerate(answer.calls):
        yield event({"tool_calls": [{"index": index, **_call(call, "")}]})
        arguments = json.dumps(call.arguments)
        for start in range(0, len(arguments), 24):
            piece = {"index": index, "function": {"arguments": arguments[start : start + 24]}}
            yield event({"tool_calls": [piece]})
    yield event({}, answer.finish_reason)
    if request.include_usage:
        yield _sse({**envelope, "choices": [], "usage": usage(request, answer)})
    yield b"data: [DONE]\n\n"


def _call(call: ToolCall, arguments: str) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _envelope(request: Request, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex[:16]}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }


def _sse(document: Json) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
