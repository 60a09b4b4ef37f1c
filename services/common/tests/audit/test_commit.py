"""Group commit with a disk that tests can hold, slow down and break."""

import asyncio
import threading

import pytest
from kars_common.audit.commit import SLOW_S, GroupCommit
from kars_common.errors import UnavailableError


class Disk:
    """Counts syncs, and knows on which thread each was done."""

    def __init__(self) -> None:
        self.written = 0
        self.now_s = 0.0
        self.takes_s = 0.0
        self.error: OSError | None = None
        self.gate: threading.Event | None = None
        self.threads: list[bool] = []
        self.settled: list[int] = []
        self.commit = GroupCommit(self.begin, self.end, lambda: self.now_s)

    def begin(self) -> tuple[int, "Disk"]:
        return self.written, self

    def __call__(self) -> None:
        self.threads.append(threading.current_thread() is not threading.main_thread())
        self.now_s += self.takes_s
        if self.gate is not None:
            assert self.gate.wait(5)
        if self.error is not None:
            raise self.error

    def end(self, position: int, error: OSError | None) -> None:
        self.settled.append(position)

    async def write_and_wait(self) -> None:
        self.written += 1
        await self.commit.wait(self.written)


async def test_those_who_are_ready_in_one_turn_share_one_sync() -> None:
    disk = Disk()
    await asyncio.gather(*(disk.write_and_wait() for _ in range(50)))
    assert disk.settled == [50]
    await disk.commit.close()


async def test_slow_disk_moves_to_a_thread_and_is_tried_again() -> None:
    disk = Disk()
    disk.takes_s = 2 * SLOW_S
    for _ in range(200):
        await disk.write_and_wait()
    assert disk.threads[:66] == [False, *[True] * 64, False]
    assert disk.threads.count(False) == 3, "ever more rarely"
    disk.takes_s = 0
    for _ in range(600):
        await disk.write_and_wait()
    assert not any(disk.threads[-100:]), "a disk that became quick is trusted again"
    await disk.commit.close()


async def test_those_who_come_during_a_slow_sync_share_the_next() -> None:
    disk = Disk()
    disk.takes_s = 2 * SLOW_S
    await disk.write_and_wait()  # from here on the thread does it
    disk.gate = threading.Event()
    waiters = [asyncio.create_task(disk.write_and_wait())]
    while len(disk.threads) < 2:
        await asyncio.sleep(0)
    waiters += [asyncio.create_task(disk.write_and_wait()) for _ in range(20)]
    await asyncio.sleep(0)
    assert disk.commit.busy
    disk.gate.set()
    await asyncio.gather(*waiters)
    assert disk.settled == [1, 2, 22]
    await disk.commit.close()


@pytest.mark.parametrize("threaded", [False, True])
async def test_failure_reaches_every_waiter_now_and_later(threaded: bool) -> None:
    disk = Disk()
    if threaded:
        disk.takes_s = 2 * SLOW_S
        await disk.write_and_wait()
    disk.error = OSError(5, "input/output error")
    outcomes = await asyncio.gather(*(disk.write_and_wait() for _ in range(5)), return_exceptions=True)
    assert [getattr(o, "reason", None) for o in outcomes] == ["audit_unavailable"] * 5
    disk.error = None
    with pytest.raises(UnavailableError):
        await disk.write_and_wait()
    await disk.commit.close()


async def test_closing_waits_for_the_running_sync() -> None:
    disk = Disk()
    waiter = asyncio.create_task(disk.write_and_wait())
    await asyncio.sleep(0)
    await disk.commit.close()
    assert disk.settled == [1]
    await waiter
