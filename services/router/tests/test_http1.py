"""One connection to a provider, fed by hand: whatever a peer sends, in whatever pieces."""

import asyncio
import itertools
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_router.providers.http1 import HIGH_WATER_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, Answer, Connection
from kars_router.providers.upstream import UpstreamError

WHOLE = (
    b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-First: 1\r\nx-first: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n7;a=b\r\n, world\r\n0\r\ntrailer: x\r\n\r\n"
)


class Wire(asyncio.Transport):
    """A transport that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False
        self.reading = [True]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading.append(False)

    def resume_reading(self) -> None:
        self.reading.append(True)


class Peer:
    """A connection and what it told its pool."""

    def __init__(self) -> None:
        self.freed = 0
        self.lost = 0
        self.wire = Wire()
        self.connection = Connection(
            asyncio.get_running_loop(),
            read_timeout_s=5,
            total_timeout_s=5,
            idle_timeout_s=5,
            on_free=lambda _: self._count("freed"),
            on_lost=lambda _: self._count("lost"),
        )
        self.connection.connection_made(self.wire)

    def _count(self, name: str) -> None:
        setattr(self, name, cast("int", getattr(self, name)) + 1)

    def ask(self) -> Answer:
        return self.connection.ask(b"POST / HTTP/1.1\r\n\r\n")

    def send(self, data: bytes) -> None:
        if not self.wire.closed:
            self.connection.data_received(data)

    def hang_up(self) -> None:
        if not self.wire.closed:
            self.connection.eof_received()
        self.connection.connection_lost(None)


async def outcome(answer: Answer) -> tuple[int, bytes]:
    await answer.head()
    return answer.status, await answer.read(1_000_000)


async def refusal(*pieces: bytes) -> UpstreamError:
    peer = Peer()
    answer = peer.ask()
    for piece in pieces:
        peer.send(piece)
    peer.hang_up()
    with pytest.raises(UpstreamError) as raised:
        await outcome(answer)
    assert peer.freed == 0
    assert raised.value.maybe_received
    return raised.value


async def test_an_answer_is_read_and_the_connection_is_free_again() -> None:
    peer = Peer()
    for _ in range(3):
        answer = peer.ask()
        peer.send(WHOLE)
        assert await outcome(answer) == (200, b"hello, world")
        assert answer.header("x-first") == "1"
        assert answer.header("link") is None, "an interim head is not the answer's"
    assert peer.freed == 3
    assert not peer.wire.closed


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_the_cut_into_packets_changes_nothing(cuts: list[int]) -> None:
    async def check() -> None:
        peer = Peer()
        answer = peer.ask()
        places = [0, *sorted(cuts), len(WHOLE)]
        for start, end in itertools.pairwise(places):
            if start != end:
                peer.send(WHOLE[start:end])
        assert await outcome(answer) == (200, b"hello, world")
        assert peer.freed == 1
        peer.hang_up()

    asyncio.run(check())


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from(
                [WHOLE, WHOLE[:80], WHOLE[60:], b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
            ),
        ),
        max_size=6,
    )
)
def test_no_bytes_of_a_peer_raise_or_hang(pieces: list[bytes]) -> None:
    async def check() -> None:
        peer = Peer()
        answer = peer.ask()
        for piece in pieces:
            peer.send(piece)
        peer.hang_up()
        try:
            async with asyncio.timeout(2):
                status, _ = await outcome(answer)
        except UpstreamError:
            return
        assert 200 <= status <= 999

    asyncio.run(check())


async def test_a_second_answer_that_nobody_asked_for_is_never_read_as_the_next_one() -> None:
    peer = Peer()
    answer = peer.ask()
    peer.send(WHOLE + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
    assert await outcome(answer) == (200, b"hello, world")
    assert peer.wire.closed
    assert not peer.connection.usable


async def test_bytes_on_an_idle_connection_close_it() -> None:
    peer = Peer()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
    assert peer.wire.closed


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 3\r\ncontent-length: 4\r\n",
        b"content-length: -3\r\n",
        b"content-length: 3 3\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: identity\r\n",
        b"x y: z\r\n",
    ],
)
async def test_ambiguous_framing_ends_the_connection(framing: bytes) -> None:
    await refusal(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n3\r\nabc\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"",
    ],
    ids=["upgrade", "version", "other-protocol", "cut-length", "cut-chunk", "huge-chunk", "silence"],
)
async def test_what_is_no_whole_answer_is_an_error(head: bytes) -> None:
    await refusal(head)


async def test_an_endless_head_ends() -> None:
    line = b"x: " + b"y" * 1000 + b"\r\n"
    await refusal(b"HTTP/1.1 200 OK\r\n", *[line] * (MAX_HEAD_BYTES // len(line) + 1))
    await refusal(b"HTTP/1.1 200 OK\r\nx: ", *[b"y" * 1000] * (MAX_HEAD_BYTES // 1000 + 1))
    await refusal(*[b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"] * (MAX_HEAD_BYTES // 30))
    many = b"".join(b"x-%d: y\r\n" % number for number in range(MAX_HEADERS + 1))
    await refusal(b"HTTP/1.1 200 OK\r\n" + many + b"content-length: 0\r\n\r\n")


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    peer = Peer()
    answer = peer.ask()
    peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    peer.hang_up()
    assert await outcome(answer) == (200, b"hello")
    assert peer.freed == 0


async def test_connection_close_is_obeyed() -> None:
    peer = Peer()
    answer = peer.ask()
    peer.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
    assert await outcome(answer) == (200, b"ok")
    assert peer.freed == 0
    assert peer.wire.closed


async def test_a_reader_that_does_not_read_stops_the_connection() -> None:
    peer = Peer()
    answer = peer.ask()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"x" * (HIGH_WATER_BYTES + 1))
    assert peer.wire.reading == [True, False]
    chunks = answer.chunks()
    assert len(await anext(chunks)) == HIGH_WATER_BYTES + 1
    assert peer.wire.reading == [True, False, True]
    await answer.close()
    assert peer.wire.closed, "what was not read to its end is not used again"


async def test_what_came_before_the_break_is_still_read() -> None:
    peer = Peer()
    answer = peer.ask()
    peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
    peer.hang_up()
    chunks = answer.chunks()
    assert await anext(chunks) == b"hello"
    with pytest.raises(UpstreamError):
        await anext(chunks)
    assert peer.lost == 1


async def test_an_answer_that_is_read_late_does_not_disturb_the_next_one() -> None:
    peer = Peer()
    first = peer.ask()
    peer.send(WHOLE)
    peer.ask()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"x" * (HIGH_WATER_BYTES + 1))
    assert await outcome(first) == (200, b"hello, world")
    await first.close()
    assert peer.wire.reading == [True, False], "the second is still held back"
    assert not peer.wire.closed


async def test_a_connection_that_broke_before_the_request_was_told_nothing() -> None:
    peer = Peer()
    peer.hang_up()
    with pytest.raises(UpstreamError) as raised:
        peer.ask()
    assert not raised.value.maybe_received
