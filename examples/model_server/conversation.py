"""What a conversation has come to: the last wish of the user, and what tools have answered since."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from examples.model_server.completions import text_of


@dataclass(frozen=True, kw_only=True)
class Done:
    """One tool call that has been answered."""

    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The last user message, and the tool calls answered since it (and before it)."""

    wish: str
    done: tuple[Done, ...]
    before: tuple[Done, ...]

    @classmethod
    def of(cls, messages: Sequence[dict[str, Any]]) -> "Conversation":
        """Read a conversation."""
        wish = ""
        done: list[Done] = []
        before: list[Done] = []
        calls: dict[str, tuple[str, dict[str, Any]]] = {}
        for message in messages:
            role = message.get("role")
            if role == "user":
                wish = text_of(message.get("content"))
                before += done
                done = []
            elif role == "assistant":
                for call in message.get("tool_calls") or ():
                    function = call.get("function") or {}
                    calls[str(call.get("id"))] = (str(function.get("name")), _arguments(function))
            elif role == "tool":
                name, arguments = calls.get(str(message.get("tool_call_id")), ("", {}))
                done.append(Done(name=name, arguments=arguments, result=text_of(message.get("content"))))
        return cls(wish=wish, done=tuple(done), before=tuple(before))

    def results(self, name: str) -> list[Done]:
        """Return the answered calls of one tool since the last wish."""
        return [item for item in self.done if item.name == name]


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}
