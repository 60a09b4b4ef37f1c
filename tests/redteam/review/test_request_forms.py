"""Requests that say one thing to the router and another to the provider."""

from typing import Any

import pytest
from kars_router_testkit import FakeProvider, RouterProcess, bundle
from kars_router_testkit.fixtures import StartRouter
from kars_router_testkit.policies import capability

URL = "http://169.254.169.254/latest/meta-data"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": URL}}]},
        {"role": "user", "content": [{**IMAGE, "text": "unread"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {**IMAGE["image_url"], "src": URL}}]},  # type: ignore[dict-item]  # a dict
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": URL}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": URL}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA=="}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
        {"role": "user", "content": [{"text": "x", "image_url": {"url": URL}}]},
        {"role": "user", "content": "x", "images": [URL]},
        {"role": "user", "content": "x", "attachments": [{"url": URL}]},
        {"role": "assistant", "content": "x", "audio": {"id": "a"}},
    ],
)
def test_a_message_cannot_make_the_provider_fetch_or_read_what_nobody_judged(
    router: RouterProcess, provider: FakeProvider, message: dict[str, Any]
) -> None:
    assert router.chat(messages=[message]).status == 400
    assert not provider.received


def test_what_clients_echo_of_an_answer_is_accepted(router: RouterProcess, provider: FakeProvider) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "t", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "refusal": None, "audio": None, "annotations": None}
    answer = router.chat(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE], "name": "someone"},
            {**said, "tool_calls": [call], "reasoning_content": "hm"},
            {"role": "tool", "content": "done", "tool_call_id": "c"},
        ]
    )
    assert answer.status == 200
    assert len(provider.received[0].json["messages"]) == 3


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "custom", "custom": {"name": "send"}, "function": {"name": "read"}},
        {"type": "function", "function": {"name": "send"}, "name": "read"},
        {"type": "custom", "custom": {"name": "send"}, "name": "read"},
        {"type": ["function"], "function": {"name": "read"}},
        {"type": "mcp", "server_url": URL, "function": {"name": "read"}},
        {"type": "web_search"},
    ],
)
def test_a_tool_cannot_be_offered_under_another_tools_name(
    start_router: StartRouter, provider: FakeProvider, tool: dict[str, Any]
) -> None:
    router = start_router(policy=bundle(rules=[capability("no", deny=["tool:send*"])]))
    answer = router.chat(tools=[tool])
    sent = [request.body for request in provider.received]
    assert answer.status == 400 or not any(b"send" in body for body in sent)


def test_a_choice_cannot_name_a_tool_that_was_taken_out(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router(policy=bundle(rules=[capability("no", deny=["tool:send*"])]))
    tools = [{"type": "function", "function": {"name": name}} for name in ("read", "send")]
    for choice in (
        {"type": "function", "function": {"name": "send"}},
        {"type": "custom", "custom": {"name": "send"}, "function": {"name": "read"}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tools[1]]}},
    ):
        answer = router.chat(tools=tools, tool_choice=choice)
        assert answer.status in {400, 403}
    assert not provider.received
