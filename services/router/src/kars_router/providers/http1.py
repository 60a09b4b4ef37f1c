"""One HTTP/1.1 connection to a provider: one request at a time, one answer, then the next.

Parsing is llhttp's (httptools), strict; this module adds what a client owes:
bounds on the head, back-pressure on the body, silence and total time. It never
follows a redirect, keeps no cookie and decompresses nothing (no bomb). What it
does not understand ends the connection, so that no byte of one answer is ever
read as the next one's. Knows nothing of pools, TLS or names.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

import httptools

from kars_router.providers.upstream import AnswerTooLargeError, UpstreamError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
HIGH_WATER_BYTES = 64 * 1024
"""So much of a body waits for its reader before the connection is not read any more."""

_VERSIONS = frozenset(("1.1", "1.0"))


class Answer:
    """`UpstreamResponse` on one connection: the head, and the body as far as it is here."""

    __slots__ = ("_connection", "_error", "_headers", "_parts", "_waiter", "buffered", "complete", "status")

    def __init__(self, connection: "Connection") -> None:
        self._connection: Connection | None = connection
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: UpstreamError | None = None
        self.buffered = 0
        self.complete = False
        self.status = 0

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        value = self._headers.get(name.encode())
        return value.decode("latin-1") if value is not None else None

    async def head(self) -> Self:
        """Return when status and headers are here.

        Raises:
            UpstreamError: they never came.
        """
        while not self.status:
            await self._progress()
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; what came together is yielded together."""
        while True:
            if self._parts:
                yield self._take()
            elif self.complete:
                return
            else:
                await self._progress()

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body."""
        parts: list[bytes] = []
        size = 0
        while True:
            size += self.buffered
            if size > max_bytes:
                raise AnswerTooLargeError("the answer is too large", maybe_received=True)
            if self._parts:
                parts.append(self._take())
            if self.complete:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            await self._progress()

    async def close(self) -> None:
        """Let go of the connection; one whose answer has not ended is closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Take the head (called by the connection)."""
        self.status, self._headers = status, headers
        self._wake()

    def add(self, part: bytes) -> None:
        """Take a piece of the body (called by the connection)."""
        self._parts.append(part)
        self.buffered += len(part)
        self._wake()

    def end(self, error: UpstreamError | None = None) -> None:
        """Take the end of the body, or what came instead of it (called by the connection)."""
        self.complete, self._error = error is None, error
        self._connection = None  # which may serve another answer from now on
        self._wake()

    def _take(self) -> bytes:
        parts, self._parts, self.buffered = self._parts, [], 0
        if self._connection is not None:
            self._connection.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _progress(self) -> None:
        """Wait until the connection has brought something, or say why it never will. Raises UpstreamError."""
        if self._error is not None:
            raise self._error
        if self._connection is None:
            raise UpstreamError("the answer was closed", maybe_received=True)
        self._waiter = self._connection.loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Connection(asyncio.Protocol):
    """A connection: `ask` when it is free, and it comes back through `on_free` when it may be used again.

    One timer watches silence, total time and idleness. It is not set anew for each piece of an answer: it
    looks, when it rings, at what happened meanwhile.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        read_timeout_s: float,
        total_timeout_s: float,
        idle_timeout_s: float,
        on_free: Callable[["Connection"], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        """Prepare one; the loop connects it.

        Args:
            loop: the loop it lives on.
            read_timeout_s: longest silence of the peer within an answer.
            total_timeout_s: longest time for a whole answer.
            idle_timeout_s: longest time without a request; then it closes.
            on_free: told when another request may be sent.
            on_lost: told once when it is gone.
        """
        self.loop = loop
        self._read_timeout_s = read_timeout_s
        self._total_timeout_s = total_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._on_free = on_free
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._in_head = True
        self._until_close = False
        self._paused = False
        self._stray = False
        self._heard = 0.0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        """True while another request may be sent."""
        return self._transport is not None and self._answer is None and not self._transport.is_closing()

    def ask(self, request: bytes) -> Answer:
        """Send one request; its answer begins to arrive.

        Raises:
            UpstreamError: the peer has closed the connection; nothing was sent.
        """
        if self._answer is not None:
            raise RuntimeError("the connection is not free")
        if self._transport is None or self._transport.is_closing():
            raise UpstreamError("the provider closed the connection", maybe_received=False)
        answer = self._answer = Answer(self)
        self._headers, self._head_bytes, self._in_head = {}, 0, True
        self._heard = self.loop.time()
        self._deadline = self._heard + self._total_timeout_s
        self._watch(min(self._read_timeout_s, self._total_timeout_s))
        self._transport.write(request)
        return answer

    def abort(self) -> None:
        """Close now; an answer under way fails."""
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """Read on: the answer's reader has taken what was here."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard = self.loop.time()
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio callback)."""
        self._transport = transport  # type: ignore[assignment]  # a stream transport: the pool makes no other

    def data_received(self, data: bytes) -> None:
        """Parse (asyncio callback)."""
        if self._answer is None:
            self.abort()  # nobody asked
            return
        self._heard = self.loop.time()
        if self._in_head:
            # An endless header never reaches a callback: count what the parser was given.
            self._head_bytes = self._head_bytes + len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("the provider's answer is not HTTP/1.1")
            return
        if self._stray or self._head_bytes > MAX_HEAD_BYTES:
            self._fail("the provider's answer is not well-formed")
        else:
            self._hold_back()

    def _hold_back(self) -> None:
        """Read no further while so much waits for the answer's reader."""
        waiting = self._answer.buffered if self._answer is not None else 0
        if waiting > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """End an answer whose length is the connection's (asyncio callback)."""
        if self._answer is not None and self._until_close and not self._in_head:
            answer, self._answer = self._answer, None
            answer.end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Fail what is under way (asyncio callback)."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._answer is not None:
            answer, self._answer = self._answer, None
            answer.end(UpstreamError("the connection to the provider broke", maybe_received=True))
        self._on_lost(self)

    def on_message_begin(self) -> None:
        """Note an answer that nobody asked for (httptools callback)."""
        self._stray = self._answer is None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the first value of each header (httptools callback)."""
        if len(self._headers) >= MAX_HEADERS:
            raise ValueError("too many headers")
        self._headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Hand over the head, unless it is an interim one (httptools callback)."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in _VERSIONS:
            raise ValueError("not HTTP/1.1")
        if status < 200 or self._answer is None:
            return
        self._in_head, self._head_bytes = False, 0
        encoding = self._headers.get(b"transfer-encoding")
        if encoding is not None and encoding.lower() != b"chunked":
            raise ValueError("the body's length is not known")
        self._until_close = encoding is None and b"content-length" not in self._headers
        self._answer.begin(status, self._headers)

    def on_body(self, body: bytes) -> None:
        """Hand over a piece of the body (httptools callback)."""
        if self._answer is not None:
            self._answer.add(body)

    def on_message_complete(self) -> None:
        """Hand over the end and become free, or forget an interim head (httptools callback)."""
        if self._in_head:
            self._headers = {}
            return
        answer, self._answer = self._answer, None
        if answer is None:
            return
        keep = self._parser.should_keep_alive() and not self._until_close
        answer.end()
        if self._paused:
            self._paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        if keep:
            self._on_free(self)
        elif self._transport is not None:
            self._transport.close()

    def _fail(self, message: str, *, timed_out: bool = False) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.end(UpstreamError(message, maybe_received=True, timed_out=timed_out))
        self.abort()

    def _watch(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        if self._transport is None:
            return
        if self._answer is None:
            rest_s = self._heard + self._idle_timeout_s - now
            if rest_s <= 0:
                self._transport.close()
                return
        else:
            if self._paused or self._transport.get_write_buffer_size():
                self._heard = now  # the silence is ours: its reader is slow, or the request is still leaving
            rest_s = min(self._heard + self._read_timeout_s, self._deadline) - now
            if rest_s <= 0:
                self._fail("the provider took too long", timed_out=True)
                return
        # A request that comes meanwhile must not wait longer for its first look than its own limits say.
        self._watch(min(rest_s, self._read_timeout_s, self._total_timeout_s))
