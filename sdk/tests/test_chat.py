"""kars.chat/1 over real sockets: turns, streaming, limits, and clients that misbehave."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_sdk.chat import (
    ChatEvent,
    ChatServer,
    Delta,
    Failed,
    Limits,
    ProtocolError,
    Session,
    ToolCalled,
    protocol,
)
from kars_sdk.chat.sessions import Sessions


class Echo:
    """Says what it heard; remembers how often; waits for the gate when told to."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()

    async def reply(self, session: Session, text: str) -> AsyncIterator[ChatEvent]:
        count = session.state if isinstance(session.state, int) else 0
        session.state = count + 1
        if text == "raise":
            raise ValueError("secret detail")
        if text == "refuse":
            yield Failed("policy_denied", "not allowed")
            return
        yield ToolCalled("think")
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield Delta(f"{count}:{text}")


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            line = await self.reader.readline()
        assert line, "the server closed the connection"
        document: dict[str, Any] = json.loads(line)
        return document

    async def closed(self) -> bool:
        async with asyncio.timeout(5):
            return await self.reader.read() == b""

    async def say(self, text: str, session: str = "") -> list[dict[str, Any]]:
        self.send(text, session)
        events = [await self.read()]
        while events[-1]["type"] not in ("done", "error"):
            events.append(await self.read())
        return events

    def send(self, text: str, session: str = "") -> None:
        self.writer.write(json.dumps({"type": "message", "text": text, "session": session}).encode() + b"\n")


@asynccontextmanager
async def serving(agent: Echo, **limits: Any) -> AsyncIterator[int]:
    server = ChatServer(agent, name="reporter", runtime="fake", limits=Limits(**limits))
    port = await server.start(0)
    try:
        yield port
    finally:
        await server.close()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_turns_stream_and_a_session_is_remembered() -> None:
    async with serving(Echo()) as port, connected(port) as client:
        assert (await client.read())["protocol"] == protocol.PROTOCOL
        first, second = await client.say("hello"), await client.say("again")
        other = await client.say("new", session="another")
    assert [event["type"] for event in first] == ["tool_call", "delta", "done"]
    assert [events[1]["text"] for events in (first, second, other)] == ["0:hello", "1:again", "0:new"]


async def test_named_session_goes_on_over_another_connection() -> None:
    async with serving(Echo()) as port:
        for expected in ("0:x", "1:x"):
            async with connected(port) as client:
                await client.read()
                assert (await client.say("x", session="s"))[1]["text"] == expected


async def test_refusal_and_crash_end_the_turn_but_not_the_conversation() -> None:
    async with serving(Echo()) as port, connected(port) as client:
        await client.read()
        refused, crashed, fine = (
            await client.say("refuse"),
            await client.say("raise"),
            await client.say("fine"),
        )
    assert refused == [{"type": "error", "reason": "policy_denied", "message": "not allowed"}]
    assert crashed == [{"type": "error", "reason": "agent_failed", "message": "ValueError"}]
    assert fine[-1] == {"type": "done"}


async def test_client_that_leaves_cancels_its_turn() -> None:
    agent = Echo()
    agent.gate.clear()
    async with serving(agent) as port:
        async with connected(port) as client:
            await client.read()
            client.send("wait", session="s")
            await asyncio.wait_for(agent.entered.wait(), 5)
        await asyncio.wait_for(agent.cancelled.wait(), 5)
        agent.gate.set()
        async with connected(port) as client:
            await client.read()
            assert (await client.say("x", session="s"))[-1] == {"type": "done"}


async def test_one_turn_a_session_at_a_time() -> None:
    agent = Echo()
    agent.gate.clear()
    async with serving(agent) as port, connected(port) as first, connected(port) as second:
        await first.read()
        await second.read()
        first.send("wait", session="s")
        await asyncio.wait_for(agent.entered.wait(), 5)
        assert (await second.say("me too", session="s"))[0]["reason"] == "session_busy"
        agent.gate.set()


async def test_connections_are_bounded_and_the_place_is_given_back() -> None:
    async with serving(Echo(), connections=1) as port, connected(port) as first:
        await first.read()
        async with connected(port) as second:
            assert (await second.read())["reason"] == "too_many_connections"
            assert await second.closed()
        assert (await first.say("still here"))[-1] == {"type": "done"}


async def test_idle_connections_are_closed() -> None:
    async with serving(Echo(), idle_s=0.05) as port, connected(port) as client:
        await client.read()
        assert await client.closed()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"x" * (protocol.MAX_LINE_BYTES + 10) + b"\n", "line_too_long"),
        (b"not json\n", "not_json"),
        (b"[1]\n", "not_a_message"),
        (b'{"type":"message"}\n', "text_invalid"),
        (b'{"type":"message","text":"x","session":"../x"}\n', "session_invalid"),
        (b"\xff\xfe\n", "not_json"),
        (b"[" * 50_000 + b"\n", "not_json"),
    ],
)
async def test_lines_that_are_no_message_are_answered_and_end_the_connection(
    line: bytes, reason: str
) -> None:
    async with serving(Echo()) as port, connected(port) as client:
        await client.read()
        client.writer.write(line)
        assert (await client.read())["reason"] == reason


@given(st.binary(max_size=200))
def test_any_line_is_a_message_or_refused_by_reason(line: bytes) -> None:
    with suppress(ProtocolError):
        protocol.decode(line)


@given(st.text(max_size=9000))
def test_long_replies_come_in_lines_that_fit_and_lose_nothing(text: str) -> None:
    lines = protocol.encode(Delta(text)).splitlines(keepends=True)
    assert all(len(line) <= protocol.MAX_LINE_BYTES for line in lines)
    assert "".join(json.loads(line)["text"] for line in lines) == text


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_sessions_never_exceed_their_limit_and_keep_the_newest(names: list[int], limit: int) -> None:
    sessions = Sessions(limit)
    for name in names:
        opened = sessions.open(str(name))
        assert len(sessions) <= limit
        assert sessions.open(str(name)) is opened
