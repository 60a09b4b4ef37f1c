"""A chat-completion request: validated, bounded, ready to be judged.

Knows the wire format's fields and nothing of policy. What passes here is what
goes to the provider, written anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from kars_router.inference import fields

OUTPUT_BOUNDS = ("max_tokens", "max_completion_tokens")


class BadRequestError(ValueError):
    """The request is not a chat completion that this door accepts.

    Attributes:
        code: stable reason for the wire.
        param: the field, or None.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(slots=True, kw_only=True)
class ChatRequest:
    """One request.

    Attributes:
        body: fields to forward; `model`, token bounds and stream options are set by later gates.
        model: model that the caller asked for; empty when it left the choice to policy.
        stream: the caller wants server-sent events.
        wants_usage: the caller asked for the usage event of a stream.
        max_output: output bound that the caller asked for, per choice; None when it set none.
        choices: how many answers (`n`).
        prompt_bytes: size of everything a provider reads as prompt.
        images: image parts among the messages.
        body_bytes: size of the request as it came.
    """

    body: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    max_output: int | None
    choices: int
    prompt_bytes: int
    images: int
    body_bytes: int = 0

    def tools(self) -> Iterator[tuple[str, int, str]]:
        """Yield (list name, index, tool name) of each offered tool."""
        for index, tool in enumerate(self.body.get("tools") or ()):
            yield "tools", index, tool_name(tool)
        for index, function in enumerate(self.body.get("functions") or ()):
            yield "functions", index, tool_name(function)


def tool_name(tool: dict[str, Any]) -> str:
    """Return the name of an offered or chosen tool; empty when it has none."""
    for source in (tool.get("function"), tool.get("custom"), tool):
        if isinstance(source, dict) and isinstance(source.get("name"), str):
            return str(source["name"])
    return ""


def parse_chat(document: dict[str, Any], body_bytes: int = 0) -> ChatRequest:
    """Check a request's fields and take ownership of it.

    Raises:
        BadRequestError: `unsupported_parameter`, `invalid_type`, `missing_parameter`, or a more precise code.
    """
    for name, value in document.items():
        rule = fields.FIELDS.get(name)
        if rule is None:
            raise BadRequestError("unsupported_parameter", f"unknown field {name[:64]!r}", name[:64])
        if value is not None and not rule[0](value):
            raise BadRequestError("invalid_type", f"{name} must be {rule[1]}", name)
    body = {
        name: value
        for name, value in document.items()
        if value is not None and name not in fields.NOT_FORWARDED
    }
    if "messages" not in body:
        raise BadRequestError("missing_parameter", "messages is required", "messages")
    images = _check_messages(body["messages"])
    _check_tools(body)
    stream = bool(body.get("stream", False))
    wants_usage = _take_stream_options(body, stream=stream)
    if stream and body.get("logprobs"):
        # Token texts beside the deltas would show what the output guards hold back.
        raise BadRequestError("unsupported_parameter", "logprobs cannot be streamed", "logprobs")
    return ChatRequest(
        body=body,
        model=body.get("model", ""),
        stream=stream,
        wants_usage=wants_usage,
        max_output=min((body[name] for name in OUTPUT_BOUNDS if name in body), default=None),
        choices=body.get("n", 1),
        prompt_bytes=_prompt_bytes(body),
        images=images,
        body_bytes=body_bytes,
    )


def _take_stream_options(body: dict[str, Any], *, stream: bool) -> bool:
    options = body.pop("stream_options", None)
    if options is None:
        return False
    if not stream:
        raise BadRequestError("invalid_type", "stream_options needs stream: true", "stream_options")
    unknown = set(options) - {"include_usage", "include_obfuscation"}
    if unknown or not all(isinstance(value, bool) for value in options.values()):
        raise BadRequestError(
            "invalid_type", "stream_options may hold include_usage: true or false", "stream_options"
        )
    return bool(options.get("include_usage", False))


def _check_messages(messages: list[dict[str, Any]]) -> int:
    images = 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role")
        if not isinstance(role, str) or role not in fields.ROLES:
            raise BadRequestError(
                "invalid_role", f"{where}.role must be one of {sorted(fields.ROLES)}", where
            )
        _refuse_unknown(message, fields.MESSAGE_MEMBERS, where)
        content = message.get("content")
        if isinstance(content, list):
            images += _check_parts(content, where)
        elif content is not None and not isinstance(content, str):
            raise BadRequestError("invalid_type", f"{where}.content must be a string or an array", where)
        calls = message.get("tool_calls")
        if calls is not None and not (
            isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
        ):
            raise BadRequestError("invalid_type", f"{where}.tool_calls must be an array of objects", where)
        if content is None and not calls and message["role"] != "assistant":
            raise BadRequestError("missing_parameter", f"{where}.content is required", where)
        for name in ("name", "tool_call_id"):
            if not isinstance(message.get(name, ""), str | None):
                raise BadRequestError("invalid_type", f"{where}.{name} must be a string", where)
    return images


def _check_parts(parts: list[Any], where: str) -> int:
    images = 0
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadRequestError("invalid_type", f"{where}.content parts must be objects with a type", where)
        members = fields.PART_MEMBERS.get(part["type"])
        if members is None:
            raise BadRequestError(
                "invalid_type", f"{where}.content part {part['type'][:32]!r} is not supported", where
            )
        _refuse_unknown(part, members, f"{where}.content")
        if part["type"] == "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else None
            # A URL would make the provider fetch for the agent, past its egress rules.
            if not isinstance(url, str) or not url.startswith("data:image/"):
                raise BadRequestError("invalid_image", f"{where}: images must be data: URLs", where)
            _refuse_unknown(part["image_url"], fields.IMAGE_MEMBERS, f"{where}.content.image_url")
            images += 1
        elif not isinstance(part.get(part["type"]), str):
            raise BadRequestError("invalid_type", f"{where}.content part must hold text", where)
    return images


def _refuse_unknown(given: dict[str, Any], known: frozenset[str], where: str) -> None:
    """Refuse members that nobody here reads: they would reach the provider unjudged and uncounted."""
    for name, value in given.items():
        if name not in known and value is not None:
            raise BadRequestError(
                "unsupported_parameter", f"{where} has an unknown member {name[:64]!r}", where
            )


def _check_tools(body: dict[str, Any]) -> None:
    for tool in body.get("tools", ()):
        kind = tool.get("type")
        if not isinstance(kind, str) or kind not in fields.TOOL_MEMBERS:
            # Tools that the provider runs itself would act outside this door.
            raise BadRequestError("unsupported_tool", "tools must be of type function or custom", "tools")
        # One tool, one name: with both members a tool would be judged by one and offered by the other.
        _refuse_unknown(tool, fields.TOOL_MEMBERS[kind], "tools")
        inner = tool.get(kind)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise BadRequestError("invalid_type", "each tool needs a function with a name", "tools")
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        _refuse_unknown(choice, fields.TOOL_MEMBERS.get(str(choice.get("type")), frozenset()), "tool_choice")
    for function in body.get("functions", ()):
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRequestError("invalid_type", "each function needs a name", "functions")


def _prompt_bytes(body: dict[str, Any]) -> int:
    size = 0
    for message in body["messages"]:
        content = message.get("content")
        if isinstance(content, str) and len(message) == 2:
            size += len(content.encode()) + 16
        elif isinstance(content, list):
            # Image bytes are not text; images are counted by number.
            texts = [part for part in content if part["type"] != "image_url"]
            size += len(orjson.dumps({**message, "content": texts}))
        else:
            size += len(orjson.dumps(message))
    for name in ("tools", "functions", "response_format"):
        if name in body:
            size += len(orjson.dumps(body[name]))
    return size
