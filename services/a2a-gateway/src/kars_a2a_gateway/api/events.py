"""Server-sent events over HTTP.

The first event decides the status, a heartbeat keeps the way open, a client that is gone ends it.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable

from a2a.types import StreamResponse

from kars_a2a_gateway.api.exchange import ClientGoneError, Exchange, Headers
from kars_a2a_gateway.errors import A2AError, Kind

_LOG = logging.getLogger(__name__)
_HEARTBEAT_S = 15.0
_HEARTBEAT = b": \n\n"

Write = Callable[[StreamResponse], bytes]
WriteError = Callable[[A2AError], bytes]


async def send_events(
    exchange: Exchange,
    events: AsyncGenerator[StreamResponse, None],
    write: Write,
    write_error: WriteError,
    headers: Callable[[], Headers],
) -> None:
    """Send a stream of events.

    Raises:
        A2AError: before the first event; then nothing was sent yet.
        ClientGoneError: nobody is there.
    """
    async with contextlib.aclosing(events):
        first = await anext(events, None)
        await exchange.begin_stream(headers())
        if first is not None:
            await exchange.write_chunk(b"data: " + write(first) + b"\n\n")
        pump = asyncio.create_task(_pump(exchange, events, write, write_error), name="stream events")
        watch = asyncio.create_task(_watch(exchange), name="watch the client")
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, watch):
                task.cancel()
            await asyncio.gather(pump, watch, return_exceptions=True)
        if not pump.cancelled() and pump.exception() is not None:
            raise ClientGoneError from pump.exception()
        if not pump.cancelled():
            await exchange.end_stream()


async def _pump(
    exchange: Exchange, events: AsyncGenerator[StreamResponse, None], write: Write, write_error: WriteError
) -> None:
    try:
        async for event in events:
            await exchange.write_chunk(b"data: " + write(event) + b"\n\n")
    except A2AError as error:
        await exchange.write_chunk(b"event: error\ndata: " + write_error(error) + b"\n\n")
    except ClientGoneError:
        raise
    except Exception:  # noqa: BLE001  # the boundary: a bug ends one stream, and its text stays inside
        _LOG.exception("a stream failed")
        broken = A2AError(Kind.INTERNAL_ERROR, "the gateway failed to go on")
        await exchange.write_chunk(b"event: error\ndata: " + write_error(broken) + b"\n\n")


async def _watch(exchange: Exchange) -> None:
    """Return when the client is gone; meanwhile keep proxies from thinking so."""
    gone = asyncio.create_task(exchange.gone(), name="client gone")
    try:
        while not gone.done():
            await asyncio.wait({gone}, timeout=_HEARTBEAT_S)
            if not gone.done():
                await exchange.write_chunk(_HEARTBEAT)
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
