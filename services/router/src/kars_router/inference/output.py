"""Chat-completion answers on their way out: whole answers and stream events, one code.

`feed` takes each object the provider sent and returns what may be released at
once; `finish` returns the rest. Text flows; tool calls, finish reasons and the
usage event stay until the call has been decided and settled. What leaves is
rebuilt from fields that were looked at: an unknown field of an answer is
dropped, so nothing passes the guards inside it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kars_router.guardrails.redaction import RedactionStream, SecretScanner
from kars_router.guardrails.safety import SafetyFloor, shields_missing
from kars_router.pipeline.verdicts import DecidedBy, Deny

_TOP = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "prompt_filter_results")
_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint")
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_ANNOTATION_DEPTH = 16
_MAX_CHOICES = 128
_MAX_TOOL_CALLS = 256

Json = dict[str, Any]


class RefusedAnswerError(Exception):
    """The answer may not be released; carries the denial."""

    def __init__(self, denial: Deny) -> None:
        super().__init__(denial.code)
        self.denial = denial


@dataclass(slots=True, kw_only=True)
class ToolRequest:
    """One tool call that the answer asks for, put together from its pieces."""

    name: str = ""
    arguments: str = ""
    call_id: str = ""
    kind: str = "function"


@dataclass(slots=True)
class _Choice:
    index: int
    texts: dict[str, RedactionStream] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    tools: dict[int, ToolRequest] = field(default_factory=dict)
    legacy: ToolRequest | None = None
    finish: str | None = None
    extra: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one answer, as the provider reported them."""

    input_tokens: int
    output_tokens: int


class ChatOutput:
    """Guards one answer. Feed it every object; then read `tools` and `usage`; then `finish`."""

    def __init__(
        self,
        *,
        stream: bool,
        wants_usage: bool,
        floor: SafetyFloor,
        scanner: SecretScanner,
        count_redaction: Callable[[str], None],
    ) -> None:
        self._stream = stream
        self._wants_usage = wants_usage
        self._floor = floor
        self._scanner = scanner
        self._count = count_redaction
        self._choices: dict[int, _Choice] = {}
        self._shields_seen = False
        self._envelope: Json = {}
        self._whole: Json | None = None
        self._usage_object: Json | None = None
        self.usage: Usage | None = None

    @property
    def tools(self) -> list[ToolRequest]:
        """Every tool call of every choice."""
        found: list[ToolRequest] = []
        for choice in self._choices.values():
            found.extend(choice.tools.values())
            if choice.legacy is not None:
                found.append(choice.legacy)
        return found

    @property
    def complete(self) -> bool:
        """True when every choice has a finish reason."""
        return bool(self._choices) and all(choice.finish is not None for choice in self._choices.values())

    def feed(self, document: Json) -> list[Json]:
        """Take one object of the answer and return what may be released now.

        Raises:
            RefusedAnswerError: the answer is above the safety floor, reports an error, or is no completion.
        """
        if not self._stream:
            self._take_usage(document.get("usage"))  # first: a refused answer was bought all the same
        self._check_safety(document)
        if document.get("error") is not None:
            raise RefusedAnswerError(provider_error("the provider reported an error inside its answer"))
        choices = document.get("choices")
        if not isinstance(choices, list) or len(choices) > _MAX_CHOICES:
            raise RefusedAnswerError(provider_error("the provider's answer has no readable choices"))
        released = [self._feed_choice(choice) for choice in choices]
        if self._stream and self.complete:
            # What a stream tells before its end is no bill: a caller that hangs up then pays the maximum.
            self._take_usage(document.get("usage"))
        top = {name: self._clean(document[name]) for name in _TOP if name in document}
        if not self._stream:
            self._whole = top
            return []
        self._envelope = {name: top[name] for name in _ENVELOPE if name in top}
        kept = [choice for choice in released if choice is not None]
        if not kept and "prompt_filter_results" not in top:
            return []
        top["choices"] = kept
        return [top]

    def finish(self) -> list[Json]:
        """Return everything that was kept, in the order that clients expect."""
        if not self._stream:
            return [self._finish_whole()]
        out: list[Json] = []
        for choice in self._choices.values():
            delta: Json = {}
            for name, text in choice.texts.items():
                rest = text.finish()
                if rest:
                    delta[name] = rest
            if choice.tools:
                delta["tool_calls"] = [
                    {"index": index, **self._tool(tool)} for index, tool in sorted(choice.tools.items())
                ]
            if choice.legacy is not None:
                delta["function_call"] = self._function(choice.legacy)
            if delta:
                out.append(self._chunk([{"index": choice.index, "delta": delta, "finish_reason": None}]))
            last = {"index": choice.index, "delta": {}, "finish_reason": choice.finish, **choice.extra}
            out.append(self._chunk([last]))
        if self._wants_usage and self._usage_object is not None:
            out.append({**self._chunk([]), "usage": self._usage_object})
        return out

    def _chunk(self, choices: list[Json]) -> Json:
        return {**self._envelope, "choices": choices}

    def _check_safety(self, document: Json) -> None:
        if not self._floor.active:
            return
        denial = self._floor.check(document)
        if denial is not None:
            raise RefusedAnswerError(denial)
        if self._floor.require_shields and not self._shields_seen:
            self._shields_seen = self._floor.shields_reported(document)
            # The annotation comes before or with the first choice; nothing was released until here.
            if not self._shields_seen and (document.get("choices") or not self._stream):
                raise RefusedAnswerError(shields_missing())

    def _take_usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        prompt, output, total = (
            usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        if type(prompt) is not int or type(output) is not int or min(prompt, output) < 0:
            return
        if type(total) is int:
            # What a provider adds beyond the two (reasoning, in some dialects) was bought as well.
            output = max(output, total - prompt)
        self.usage = Usage(input_tokens=prompt, output_tokens=output)
        self._usage_object = self._clean(usage)

    def _feed_choice(self, raw: object) -> Json | None:
        if not isinstance(raw, dict):
            raise RefusedAnswerError(provider_error("a choice is not an object"))
        index = raw.get("index", 0)
        if type(index) is not int or not 0 <= index < _MAX_CHOICES:
            raise RefusedAnswerError(provider_error("a choice has no readable index"))
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(index=index)
        part = raw.get("delta" if self._stream else "message")
        out: Json = {}
        if isinstance(part, dict):
            out = self._feed_part(choice, part)
        reason = raw.get("finish_reason")
        if isinstance(reason, str):
            if _WORD.fullmatch(reason) is None:
                raise RefusedAnswerError(provider_error("a finish reason is not a word"))
            choice.finish = self._clean(reason)
        for name in ("content_filter_results", "logprobs"):
            if raw.get(name) is not None and (name != "logprobs" or not self._stream):
                choice.extra[name] = self._clean(raw[name])
        if not out or not self._stream:
            return None
        return {"index": index, "delta": out, "finish_reason": None}

    def _feed_part(self, choice: _Choice, part: Json) -> Json:
        out: Json = {}
        if isinstance(part.get("role"), str):
            out["role"] = "assistant"
        for name in _TEXTS:
            if name not in part:
                continue
            value = part[name]
            if value is None:
                if name == "content" and self._stream and "role" in out:
                    out[name] = None
                continue
            text = value if isinstance(value, str) else _joined(value)
            if self._stream:
                stream = choice.texts.get(name)
                if stream is None:
                    stream = choice.texts[name] = RedactionStream(self._scanner, self._count)
                released = stream.feed(text)
                # An empty delta tells a client nothing, except beside the role.
                if released or (not text and "role" in out):
                    out[name] = released
            else:
                choice.whole[name] = self._scanner.redact(text, self._count)
        if part.get("tool_calls") is not None:
            self._feed_tools(choice, part["tool_calls"])
        if isinstance(part.get("function_call"), dict):
            choice.legacy = choice.legacy or ToolRequest()
            _add(choice.legacy, part["function_call"], "arguments")
        return out

    def _feed_tools(self, choice: _Choice, calls: object) -> None:
        if not isinstance(calls, list):
            raise RefusedAnswerError(provider_error("tool_calls is not an array"))
        for position, call in enumerate(calls):
            if not isinstance(call, dict):
                raise RefusedAnswerError(provider_error("a tool call is not an object"))
            index = call.get("index")
            if type(index) is not int:
                # Dialects without an index: a new id begins a new call.
                new = not self._stream or bool(call.get("id")) or not choice.tools
                index = len(choice.tools) if new else max(choice.tools)
            elif not self._stream:
                index = position
            if index not in choice.tools and len(choice.tools) >= _MAX_TOOL_CALLS:
                raise RefusedAnswerError(provider_error("the answer asks for too many tool calls"))
            tool = choice.tools.setdefault(index, ToolRequest())
            if isinstance(call.get("id"), str) and call["id"]:
                tool.call_id = call["id"]
            if isinstance(call.get("custom"), dict):
                tool.kind = "custom"
                _add(tool, call["custom"], "input")
            elif isinstance(call.get("function"), dict):
                _add(tool, call["function"], "arguments")

    def _finish_whole(self) -> Json:
        choices: list[Json] = []
        for choice in self._choices.values():
            message: Json = {"role": "assistant", "content": None, **choice.whole}
            if choice.tools:
                message["tool_calls"] = [self._tool(tool) for _, tool in sorted(choice.tools.items())]
            if choice.legacy is not None:
                message["function_call"] = self._function(choice.legacy)
            extra = choice.extra
            if self._rewritten(choice) or self._hides_secret(extra.get("logprobs")):
                extra.pop("logprobs", None)
            choices.append(
                {"index": choice.index, "message": message, "finish_reason": choice.finish, **extra}
            )
        whole = {**(self._whole or {}), "choices": choices}
        if self._usage_object is not None:
            whole["usage"] = self._usage_object
        return whole

    @staticmethod
    def _rewritten(choice: _Choice) -> bool:
        """Tell whether token texts would show a secret or a tool call that is not shown as it came."""
        redacted = any("[REDACTED_" in value for value in choice.whole.values())
        return bool(choice.tools) or choice.legacy is not None or redacted

    def _hides_secret(self, logprobs: object) -> bool:
        """Tell whether token texts, read together, hold a secret."""
        for tokens in logprobs.values() if isinstance(logprobs, dict) else ():
            pieces = [token.get("token") for token in tokens or () if isinstance(token, dict)]
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            if self._scanner.redact(text) != text:
                return True
        return False

    def _clean(self, value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - a JSON value
        """Return what a provider says beside the text, without secrets in any of its strings."""
        if isinstance(value, str):
            return self._scanner.redact(value, self._count)
        if depth > _MAX_ANNOTATION_DEPTH:
            raise RefusedAnswerError(provider_error("the provider's answer is nested too deep"))
        if isinstance(value, list):
            return [self._clean(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {self._clean(key): self._clean(item, depth + 1) for key, item in value.items()}
        return value

    def _tool(self, tool: ToolRequest) -> Json:
        call_id = self._clean(tool.call_id)
        if tool.kind == "custom":
            custom = {"name": self._clean(tool.name), "input": self._clean(tool.arguments)}
            return {"id": call_id, "type": "custom", "custom": custom}
        return {"id": call_id, "type": "function", "function": self._function(tool)}

    def _function(self, tool: ToolRequest) -> Json:
        return {"name": self._clean(tool.name), "arguments": self._clean(tool.arguments)}


def provider_error(message: str) -> Deny:
    """Return the denial for an answer that cannot be read or reports a failure."""
    return Deny(
        status=502,
        error_type="proxy_error",
        code="bad_gateway",
        message=message,
        decided_by=DecidedBy.PROVIDER,
    )


def _add(tool: ToolRequest, piece: Json, argument_name: str) -> None:
    if isinstance(piece.get("name"), str):
        tool.name += piece["name"]
    value = piece.get(argument_name)
    if isinstance(value, str):
        tool.arguments += value


def _joined(parts: object) -> str:
    """Return the text of content given as parts."""
    if not isinstance(parts, list):
        raise RefusedAnswerError(provider_error("content is neither text nor parts"))
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))
