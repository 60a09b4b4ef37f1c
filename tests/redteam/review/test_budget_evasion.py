"""Ways to make a provider work without paying for it."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from kars_router_testkit import FakeProvider, Reply, RouterProcess, bundle, completion, sse_completion
from kars_router_testkit.fixtures import StartRouter

DEADLINE_S = 10.0


def eventually(found: Callable[[], bool]) -> bool:
    """Tell whether a condition comes true before the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not found():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def send_chat(router: RouterProcess, **fields: Any) -> socket.socket:
    """Send a chat completion and return the connection without reading the answer."""
    body = orjson.dumps({"messages": [{"role": "user", "content": "hi"}], **fields})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", router.port), timeout=DEADLINE_S)
    connection.sendall(head.encode() + body)
    return connection


def settled(router: RouterProcess) -> dict[str, Any]:
    """Return the record of the one call, once it is there."""
    assert eventually(lambda: bool(router.records("call.settled")))
    return router.records("call.settled")[-1]


def test_hanging_up_before_the_providers_first_byte_is_charged_in_full(
    router: RouterProcess, provider: FakeProvider
) -> None:
    working = threading.Event()

    def think(_body: dict[str, Any]) -> Reply:
        working.wait(DEADLINE_S)
        return sse_completion()

    provider.default = think
    try:
        connection = send_chat(router, stream=True, max_tokens=500)
        assert eventually(lambda: bool(provider.received))
        connection.close()
        record = settled(router)
    finally:
        working.set()
    assert record["ending"] == "cancelled"
    assert record["charged"] == router.records("call.admitted")[-1]["reserved"] >= 500


@pytest.mark.parametrize("early", [(0, 0), (1, 1)])
def test_a_usage_told_before_the_answer_is_complete_is_no_bill(
    router: RouterProcess, provider: FakeProvider, early: tuple[int, int]
) -> None:
    more = threading.Event()
    usage = {"prompt_tokens": early[0], "completion_tokens": early[1], "total_tokens": sum(early)}
    reply = sse_completion(["a" * 100, "b"], first={"choices": [], "usage": usage})
    reply.gate = more
    provider.reply(reply)
    reply.parts = [*reply.parts[:4], reply.parts[-1]]
    try:
        connection = send_chat(router, stream=True, max_tokens=500)
        assert connection.recv(65536)
        connection.close()
        record = settled(router)
    finally:
        more.set()
    assert record["charged"] == router.records("call.admitted")[-1]["reserved"]


@pytest.mark.parametrize("caller", ["max_tokens", "max_completion_tokens"])
def test_the_output_bound_is_sent_under_the_name_that_the_provider_obeys(
    router: RouterProcess, provider: FakeProvider, caller: str
) -> None:
    fields: dict[str, Any] = {caller: 7}
    assert router.chat(**fields).status == 200
    sent = provider.received[0].json
    assert sent["max_tokens"] == 7
    assert "max_completion_tokens" not in sent


def test_two_output_bounds_cannot_disagree(router: RouterProcess, provider: FakeProvider) -> None:
    assert router.chat(max_tokens=1, max_completion_tokens=900).status == 200
    sent, admitted = provider.received[0].json, router.records("call.admitted")[-1]
    bounds = [value for name, value in sent.items() if name in {"max_tokens", "max_completion_tokens"}]
    assert len(bounds) == 1
    assert admitted["reserved"] >= bounds[0]


def test_ten_answers_are_reserved_ten_times(start_router: StartRouter, provider: FakeProvider) -> None:
    router = start_router(policy=bundle(budget={"perRequestTokens": "1000"}))
    assert router.chat(n=10, max_tokens=100).code == "per_request_tokens_exceeded"
    assert router.chat(n=10).status == 200
    assert provider.received[0].json["max_tokens"] * 10 <= 1000


def test_bytes_in_every_part_of_a_request_count(start_router: StartRouter, provider: FakeProvider) -> None:
    router = start_router(policy=bundle(budget={"perRequestTokens": "6000"}))
    long = "x" * 30_000
    image: dict[str, Any] = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    said: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": long}]}]},
        {"messages": [{"role": "user", "content": "x", "name": long}]},
        {"messages": [{"role": "assistant", "content": "x", "reasoning_content": long}]},
        {"messages": [{"role": "user", "content": [{**image, "text": long}]}]},
        {
            "messages": [
                {"role": "user", "content": [{**image, "image_url": {**image["image_url"], "alt": long}}]}
            ]
        },
        {"tools": [{"type": "function", "function": {"name": "t", "description": long}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"x": long}}}},
        {"tool_choice": {"type": "function", "function": {"name": long}}},
    ]
    for fields in said:
        assert router.chat(**fields).status in {400, 403, 429}, list(fields)
    assert not provider.received


def test_strange_numbers_buy_nothing(router: RouterProcess, provider: FakeProvider) -> None:
    for text in ("0", "-1", "1.0", "1e3", '"5"', "true", "1" + "0" * 30, "NaN", "-0", "0x10", "1_000", "[5]"):
        for name in ("max_tokens", "max_completion_tokens", "n"):
            body = f'{{"messages":[{{"role":"user","content":"x"}}],"{name}":{text}}}'.encode()
            answer = router.request(
                "POST", "/v1/chat/completions", body, {"content-type": "application/json"}
            )
            assert answer.status == 400, (name, text)
    assert not provider.received


def test_an_impossible_usage_does_not_refund(router: RouterProcess, provider: FakeProvider) -> None:
    impossible: list[Any] = [
        {"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -10},
        {"prompt_tokens": 1.5, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": "1", "completion_tokens": "1"},
        {"prompt_tokens": True, "completion_tokens": False},
        {},
        [],
        7,
    ]
    for usage in impossible:
        provider.reply(completion(usage=None, extra={"usage": usage}))
        assert router.chat(max_tokens=50).status == 200
        record = router.records("call.settled")[-1]
        assert record["charged"] == router.records("call.admitted")[-1]["reserved"] > 0
