"""The provider in the benchmark: answers chat completions with fixed bytes, as fast as Python can.

Run as `python -m tests.bench.router.upstream --core N`; prints its port and
serves until its standard input closes, so that it never outlives the run. It
checks nothing: a wrong request is the load generator's finding, not its own.
"""

import argparse
import asyncio
import gc
import os
import sys
from typing import cast

import httptools
import uvloop

from tests.bench.router import wire

_BUFFERED = wire.buffered_answer()
_HEAD = wire.stream_head()
_CHUNKS = wire.stream_chunks()
_PACED = wire.PACED_MODEL.encode()
_EMPTY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Provider(asyncio.Protocol):
    """One connection from the subject under test."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._left: list[bytes] = []
        self._pace = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop writing what nobody reads."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a request that is no HTTP ends the connection."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Collect the body (httptools callback)."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer (httptools callback)."""
        body, self._body = self._body, b""
        if self._transport is None:
            return
        if not body:
            self._transport.write(_EMPTY)  # somebody's health check
        elif b'"stream":true' in body or b'"stream": true' in body:
            self._transport.write(_HEAD)
            self._left = list(reversed(_CHUNKS))
            self._pace = wire.PACE_S if _PACED in body else 0.0
            self._next()
        else:
            self._transport.write(_BUFFERED)

    def _next(self) -> None:
        """Write one event: each leaves in a turn of the loop of its own, so that each is a packet."""
        if self._transport is None:
            return
        self._transport.write(self._left.pop())
        if not self._left:
            return
        if self._pace:
            self._loop.call_later(self._pace, self._next)
        else:
            self._loop.call_soon(self._next)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Provider, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    closed = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), closed.set)
    await closed.wait()
    server.close()


def main() -> None:
    """Pin to the core that the run gives, then serve."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--core", type=int, required=True)
    os.sched_setaffinity(0, {arguments.parse_args().core})
    gc.disable()  # nothing here makes cycles; a collection would show up as somebody's p99
    uvloop.run(_serve())


if __name__ == "__main__":
    main()
