"""Which request fields a chat completion may carry, and what each must be.

An allow list: gateways and servers in the OpenAI family read fields that pick
another model, another endpoint or another key (`models`, `route`, `api_base`,
`fallbacks`, ...). A field that is not known here is refused, not passed on.
"""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:  # noqa: ANN401 - a JSON value
    return isinstance(value, str)


def _flag(value: Any) -> bool:  # noqa: ANN401 - a JSON value
    return isinstance(value, bool)


def _integer(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Check:
    return lambda value: type(value) in {int, float} and low <= value <= high


def _one_of(*values: str) -> Check:
    return lambda value: value in values


def _object(value: Any) -> bool:  # noqa: ANN401 - a JSON value
    return isinstance(value, dict)


def _objects(value: Any) -> bool:  # noqa: ANN401 - a JSON value
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _texts(value: Any) -> bool:  # noqa: ANN401 - a JSON value
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_TOKENS = _integer(1, 10_000_000)

# name -> (check, what is allowed). null is accepted where absent is.
FIELDS: Mapping[str, tuple[Check, str]] = {
    "model": (
        lambda value: isinstance(value, str) and 0 < len(value) <= 256,
        "a string of 1 to 256 characters",
    ),
    "messages": (lambda value: _objects(value) and len(value) > 0, "a non-empty array of objects"),
    "stream": (_flag, "true or false"),
    "stream_options": (_object, "an object"),
    "max_tokens": (_TOKENS, "an integer of at least 1"),
    "max_completion_tokens": (_TOKENS, "an integer of at least 1"),
    "n": (_integer(1, 128), "an integer from 1 to 128"),
    "temperature": (_number(0, 2), "a number from 0 to 2"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "top_k": (_integer(-1, 1_000_000), "an integer"),
    "min_p": (_number(0, 1), "a number from 0 to 1"),
    "repetition_penalty": (_number(0, 10), "a number from 0 to 10"),
    "presence_penalty": (_number(-2, 2), "a number from -2 to 2"),
    "frequency_penalty": (_number(-2, 2), "a number from -2 to 2"),
    "logit_bias": (_object, "an object"),
    "logprobs": (_flag, "true or false"),
    "top_logprobs": (_integer(0, 20), "an integer from 0 to 20"),
    "seed": (_integer(-(2**63), 2**63 - 1), "an integer"),
    "stop": (
        lambda value: _text(value) or (_texts(value) and len(value) <= 16),
        "a string or up to 16 strings",
    ),
    "tools": (lambda value: _objects(value) and len(value) <= 1024, "an array of up to 1024 objects"),
    "tool_choice": (lambda value: _text(value) or _object(value), "a string or an object"),
    "parallel_tool_calls": (_flag, "true or false"),
    "functions": (lambda value: _objects(value) and len(value) <= 1024, "an array of up to 1024 objects"),
    "function_call": (lambda value: _text(value) or _object(value), "a string or an object"),
    "response_format": (_object, "an object"),
    "reasoning_effort": (_text, "a string"),
    "verbosity": (_text, "a string"),
    "modalities": (lambda value: _texts(value) and set(value) <= {"text"}, 'only ["text"]'),
    "user": (_text, "a string"),
    "safety_identifier": (_text, "a string"),
    "prompt_cache_key": (_text, "a string"),
    "metadata": (_object, "an object"),
    "store": (lambda value: value is False, "false: answers are not kept at the provider"),
    "service_tier": (_one_of("auto", "default", "flex", "priority", "scale"), "a service tier"),
}

# Fields that name the caller or keep state at the provider: checked, then dropped.
NOT_FORWARDED = frozenset(
    ("user", "safety_identifier", "prompt_cache_key", "metadata", "store", "service_tier")
)
# Members of a message and of its content parts; what is not named here would reach the provider unread.
MESSAGE_MEMBERS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "cache_control")
) | frozenset(("reasoning", "reasoning_content", "reasoning_details"))
PART_MEMBERS: Mapping[str, frozenset[str]] = {
    "text": frozenset(("type", "text", "cache_control")),
    "refusal": frozenset(("type", "refusal")),
    "image_url": frozenset(("type", "image_url", "cache_control")),
}
IMAGE_MEMBERS = frozenset(("url", "detail"))
TOOL_MEMBERS: Mapping[str, frozenset[str]] = {
    kind: frozenset(("type", kind, "cache_control")) for kind in ("function", "custom")
}
ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
