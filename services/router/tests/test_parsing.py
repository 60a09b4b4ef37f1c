"""Strict JSON and server-sent events, by property."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_router.api.strict_json import MAX_DEPTH, MalformedJsonError, parse_object
from kars_router.inference.sse import EventTooLargeError, SseParser, event

KEYS = st.text(alphabet='ab":,{}[]\\é\n', max_size=4)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(alphabet='ab":,{}[]\\é', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


@given(OBJECTS, st.booleans())
def test_every_object_without_equal_keys_is_accepted(document: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=1)
    assert parse_object(text.encode()) == document


@given(OBJECTS, KEYS, VALUES, VALUES)
def test_an_equal_key_anywhere_is_refused(document: dict[str, Any], key: str, one: Any, two: Any) -> None:
    name = json.dumps(key)
    twice = f"{{{name}:{json.dumps(one)},{name}:{json.dumps(two)}}}"
    with pytest.raises(MalformedJsonError, match="same key"):
        parse_object(f'{{"doc":{json.dumps(document)},"nested":[{twice}]}}'.encode())


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_reason(raw: bytes) -> None:
    reason = ""
    try:
        parse_object(raw)
    except MalformedJsonError as exc:
        reason = exc.code
    assert reason in {"", "invalid_utf8", "invalid_json", "not_an_object", "too_deep", "duplicate_key"}


def test_depth_is_bounded() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * levels + b"1" + b"}" * levels

    assert parse_object(nested(MAX_DEPTH))
    for levels in (MAX_DEPTH + 1, 500, 5000, 200_000):
        with pytest.raises(MalformedJsonError) as raised:
            parse_object(nested(levels))
        assert raised.value.code == "too_deep"


@given(
    st.lists(VALUES, max_size=8),
    st.lists(st.integers(1, 12), max_size=80),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_events_come_out_whole_in_any_cut_and_with_any_line_end(
    documents: list[Any], cuts: list[int], line_end: bytes
) -> None:
    data = [orjson.dumps(item) for item in documents]
    text = b": comment\n\n" + b"".join(
        event(item).replace(b"data", b"id: 7\nevent: x\ndata", 1) for item in data
    )
    text = text.replace(b"\n", line_end)
    parser = SseParser(10_000)
    found: list[bytes] = []
    for cut in cuts:
        found += parser.feed(text[:cut])
        text = text[cut:]
    found += parser.feed(text)
    found += parser.feed(b"\n" if line_end == b"\r" else b"")  # a CR at the very end waits for its LF
    assert found == data


def test_an_endless_event_is_refused() -> None:
    for piece in (b"x" * 600, b"data: " + b"x" * 300 + b"\n"):
        parser = SseParser(1000)
        with pytest.raises(EventTooLargeError):
            [parser.feed(piece) for _ in range(10)]


@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n\r\n", b"\r\r\n"])
def test_a_long_line_in_single_bytes_is_one_event(ending: bytes) -> None:
    parser = SseParser(1_000_000)
    found: list[bytes] = []
    for byte in b"data: " + b"x" * 500_000 + ending:  # copied again for each piece, this would take minutes
        found += parser.feed(bytes((byte,)))
    assert found == [b"x" * 500_000]
    assert not parser.unfinished
