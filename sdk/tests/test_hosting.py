"""Tools called by name over chat, without a model."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from kars_sdk.chat import ChatEvent, Delta, Failed, Session, ToolCalled, ToolReturned
from kars_sdk.hosting import DirectTools


class Echo:
    async def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        yield Delta(f"you said {text}")


async def call(name: str, arguments: dict[str, Any]) -> str:
    if name == "kars_broken":
        raise RuntimeError("no")
    return f"{name} {arguments}"


async def said(text: str) -> list[ChatEvent]:
    return [event async for event in DirectTools(Echo(), call).reply(Session("s"), text)]


async def test_a_named_tool_is_called_with_its_arguments() -> None:
    assert await said('/kars_mesh_send {"to_agent": "b", "content": "a\\nb"}') == [
        ToolCalled("kars_mesh_send"),
        ToolReturned("kars_mesh_send", ok=True),
        Delta("kars_mesh_send {'to_agent': 'b', 'content': 'a\\nb'}"),
    ]
    assert (await said("/kars_discover"))[-1] == Delta("kars_discover {}")


@pytest.mark.parametrize(
    "text", ["hello", "/publish_report {}", "say /kars_mesh_send {}", "/kars_ {}", "/KARS_X {}"]
)
async def test_everything_else_is_for_the_agent(text: str) -> None:
    assert await said(text) == [Delta(f"you said {text}")]


async def test_wrong_arguments_and_failing_tools_end_the_turn_with_a_reason() -> None:
    assert (await said("/kars_mesh_send {oops}"))[-1] == Failed(
        "tool_arguments_invalid", "what follows /kars_mesh_send must be a JSON object"
    )
    failed = (await said("/kars_broken"))[-1]
    assert isinstance(failed, Failed)
    assert failed.reason == "tool_failed"
