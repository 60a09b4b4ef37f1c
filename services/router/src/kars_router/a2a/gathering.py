"""Letting events travel together where nobody watches them one by one.

A message costs both ends more than the event in it. The first event goes at once, because the gateway stores
a task when it knows its id; then events wait for each other a moment, and what ends the waiting is time,
number, or the agent's record with which a task comes to rest.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from kars_router.a2a.delivery import Frame

_MOST = 64
_AHEAD = 256


async def gathered(frames: AsyncIterator[Frame], gather_s: float) -> AsyncGenerator[list[Frame], None]:
    """Yield frames in lists, in their order; each alone when `gather_s` is 0."""
    if gather_s <= 0:
        async for frame in frames:
            yield [frame]
        return
    queue: asyncio.Queue[Frame | BaseException | None] = asyncio.Queue(_AHEAD)
    reader = asyncio.create_task(_read(frames, queue), name="read the agent's events")
    try:
        first = True
        while True:
            item = await queue.get()
            batch: list[Frame] = []
            if isinstance(item, Frame):
                batch.append(item)
                if not first and not item.snapshot:
                    item = await _more(queue, batch, gather_s)
                first = False
            if batch:
                yield batch
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _more(
    queue: "asyncio.Queue[Frame | BaseException | None]", batch: list[Frame], gather_s: float
) -> Frame | BaseException | None:
    """Add what comes within the time; return the last thing that was read."""
    item: Frame | BaseException | None = batch[-1]
    try:
        async with asyncio.timeout(gather_s):
            while len(batch) < _MOST:
                item = await queue.get()
                if not isinstance(item, Frame):
                    return item
                batch.append(item)
                if item.snapshot:
                    return item
    except TimeoutError:
        return batch[-1]
    return item


async def _read(frames: AsyncIterator[Frame], queue: "asyncio.Queue[Frame | BaseException | None]") -> None:
    try:
        async for frame in frames:
            await queue.put(frame)
        await queue.put(None)
    except asyncio.CancelledError:
        raise
    except Exception as exc:  # noqa: BLE001  # handed on, in order, to whoever reads the queue
        await queue.put(exc)
