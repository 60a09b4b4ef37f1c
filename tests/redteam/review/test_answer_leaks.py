"""Answers that carry a secret, or a tool call, past the guards."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from kars_router.guardrails.redaction import SecretScanner
from kars_router.guardrails.safety import SafetyFloor
from kars_router.inference.output import ChatOutput, RefusedAnswerError
from kars_router.inference.sse import SseParser

KEY = "sk-canary-0123456789abcdef0123456789abcdef"
NO_FLOOR = SafetyFloor(ceilings=(), require_shields=False)

Json = dict[str, Any]


def released(*documents: Json, stream: bool) -> bytes:
    """Everything that leaves the router for these objects of an answer."""
    output = ChatOutput(
        stream=stream,
        wants_usage=True,
        floor=NO_FLOOR,
        scanner=SecretScanner([KEY]),
        count_redaction=lambda _kind: None,
    )
    sent = [item for document in documents for item in output.feed(document)]
    return orjson.dumps([*sent, *output.finish()])


def answer(stream: bool, part: Json | None = None, choice: Json | None = None, **top: Any) -> Json:
    """One object that is a whole answer, with members added where a provider may add some."""
    body = {"role": "assistant", "content": "fine", **(part or {})}
    first = {"index": 0, "delta" if stream else "message": body, "finish_reason": "stop", **(choice or {})}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "c", "object": "o", "created": 1, "model": "m", "choices": [first], "usage": usage, **top}


def places(stream: bool) -> Iterator[tuple[str, Json]]:
    """Every place of an answer that holds text."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    for name in ("id", "object", "created", "model", "system_fingerprint", "service_tier", "x_other"):
        yield name, {**answer(stream), name: KEY}
    yield "usage", answer(stream, usage={**usage, "note": KEY, "details": {"deep": [KEY]}, KEY: 1})
    yield (
        "prompt annotations",
        answer(
            stream,
            prompt_filter_results=[{"content_filter_results": {"hate": {"severity": "safe", "why": KEY}}}],
        ),
    )
    yield "annotations", answer(stream, choice={"content_filter_results": {"hate": {"severity": KEY}}})
    for name in ("role", "content", "refusal", "reasoning", "reasoning_content", "audio", "annotations", "x"):
        yield name, answer(stream, part={name: KEY})
    yield "parts", answer(stream, part={"content": [{"type": "text", "text": KEY}]})
    yield "split parts", answer(stream, part={"content": [{"text": KEY[:9]}, {"text": KEY[9:]}]})
    yield "audio", answer(stream, part={"audio": {"transcript": KEY}})
    for member, name in (("function", "arguments"), ("custom", "input")):
        call = {"index": 0, "id": "1", member: {"name": "t", name: KEY}}
        yield member, answer(stream, part={"tool_calls": [call]})
        yield f"{member} id", answer(stream, part={"tool_calls": [{**call, "id": KEY}]})
        yield f"{member} name", answer(stream, part={"tool_calls": [{**call, member: {"name": KEY}}]})
        yield f"{member} other", answer(stream, part={"tool_calls": [{**call, "type": KEY, "x": KEY}]})
    yield "legacy", answer(stream, part={"function_call": {"name": KEY, "arguments": KEY}})
    tokens = [{"token": KEY[:9], "logprob": -1}, {"token": KEY[9:], "logprob": -1}]
    yield "logprobs", answer(stream, choice={"logprobs": {"content": tokens}})
    yield "refusal logprobs", answer(stream, choice={"logprobs": {"refusal": tokens}})
    top = [{"token": "a", "top_logprobs": [{"token": KEY}]}]
    yield "other tokens", answer(stream, choice={"logprobs": {"content": top}})
    yield (
        "legacy with tokens",
        answer(
            stream,
            part={"function_call": {"name": "t", "arguments": KEY}},
            choice={"logprobs": {"content": tokens}},
        ),
    )
    yield "both members", answer(stream, part={"message": {"content": KEY}}, choice={"text": KEY, "x": KEY})


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_no_place_of_an_answer_carries_the_routers_key(stream: bool) -> None:
    for name, document in places(stream):
        assert KEY.encode() not in released(document, stream=stream), name
        assert KEY[9:].encode() not in released(document, stream=stream), name


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_a_finish_reason_is_a_word_and_nesting_ends(stream: bool) -> None:
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    for document in (
        answer(stream, choice={"finish_reason": f"stop {KEY}"}),
        answer(stream, choice={"content_filter_results": deep}),
    ):
        with pytest.raises(RefusedAnswerError):
            released(document, stream=stream)


def test_a_key_cut_over_events_and_choices_does_not_leave() -> None:
    for size in range(1, 12):
        pieces = [KEY[at : at + size] for at in range(0, len(KEY), size)]
        events = [
            {"choices": [{"index": index, "delta": {"content": piece, "reasoning": piece}}]}
            for piece in pieces
            for index in (0, 1)
        ]
        ends: Json = {"choices": [{"index": i, "delta": {}, "finish_reason": "stop"} for i in (0, 1)]}
        sent = released(*events, ends, stream=True)
        texts: dict[str, str] = {}
        for event in orjson.loads(sent):
            for choice in event["choices"]:
                for name, text in choice["delta"].items():
                    texts[name] = texts.get(name, "") + str(text)
        assert all(KEY[4:] not in text for text in texts.values())


def test_tool_calls_under_one_index_are_released_as_they_were_judged() -> None:
    output = ChatOutput(
        stream=True,
        wants_usage=False,
        floor=NO_FLOOR,
        scanner=SecretScanner(),
        count_redaction=lambda _: None,
    )
    for call in (
        {"index": 0, "id": "a", "function": {"name": "read", "arguments": '{"p":'}},
        {"index": 0, "id": "b", "function": {"name": "_all", "arguments": '"x"}'}},
        {"index": 7, "id": "c", "custom": {"name": "send", "input": "x"}, "function": {"name": "read"}},
        {"id": "d", "function": {"name": "send", "arguments": "{}"}},
        {"index": -1, "function": {"name": "send", "arguments": "{}"}},
        {"index": "0", "function": {"name": "!", "arguments": ""}},
    ):
        assert output.feed({"choices": [{"delta": {"tool_calls": [call]}}]}) == []
    output.feed({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    judged = [(tool.name, tool.arguments) for tool in output.tools]
    (calls, _) = output.finish()
    sent = [
        (inner["name"], inner.get("arguments", inner.get("input")))
        for call in calls["choices"][0]["delta"]["tool_calls"]
        for inner in [call.get("function") or call["custom"]]
    ]
    assert sorted(sent) == sorted(judged)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_are_read_alike_however_lines_end_and_bytes_are_cut(end: bytes, size: int) -> None:
    lines = [
        b": note",
        b'data:{"a":"\xc3\xa9"}',
        b"",
        b"event: x",
        b"data: 1",
        b"data: 2",
        b"",
        b"",
        b"data",
        b"",
    ]
    raw = end.join([*lines, b"data: [DONE]", b"", b""])
    parser = SseParser(1024)
    found = [event for at in range(0, len(raw), size) for event in parser.feed(raw[at : at + size])]
    found += parser.feed(b"\n")
    assert [event for event in found if event] == [b'{"a":"\xc3\xa9"}', b"1\n2", b"[DONE]"]
