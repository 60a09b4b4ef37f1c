"""What the door's protocol writes in one turn of the loop leaves together, and nothing is lost at the end."""

import asyncio

import pytest
from kars_router.api.cork import CorkedTransport

from services.router.tests.test_http1 import Wire


class Counting(Wire):
    """Counts writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))


@pytest.fixture
def wire() -> Counting:
    return Counting()


async def test_one_turn_is_one_write(wire: Counting) -> None:
    corked = CorkedTransport(wire, asyncio.get_running_loop())
    for turn in (b"head", b"next"):
        corked.write(turn)
        corked.write(b" body")
        await asyncio.sleep(0)
    assert wire.writes == [b"head body", b"next body"]


async def test_closing_writes_what_is_held_first(wire: Counting) -> None:
    corked = CorkedTransport(wire, asyncio.get_running_loop())
    corked.write(b"last words")
    corked.close()
    assert corked.is_closing()
    assert wire.writes == [b"last words"]
    await asyncio.sleep(0)
    assert wire.writes == [b"last words"], "not a second time"


async def test_nothing_is_written_to_a_connection_that_is_gone(wire: Counting) -> None:
    corked = CorkedTransport(wire, asyncio.get_running_loop())
    corked.write(b"too late")
    wire.closed = True
    await asyncio.sleep(0)
    assert wire.writes == []
