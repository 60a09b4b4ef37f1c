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

    async def write_and_wait(self, *, patient: bool = False) -> None:
        self.written += 1
        await self.commit.wait(self.written, patient=patient)


async def test_those_who_are_ready_in_one_turn_share_one_sync() -> None:
    disk = Disk()
    await asyncio.gather(*(disk.write_and_wait() for _ in range(50)))
    assert disk.settled == [50]
    await disk.commit.close()


async def make_slow(disk: Disk) -> None:
    """Wait on a slow disk until the thread does the syncs."""
    disk.takes_s = 5 * SLOW_S
    while not disk.threads or not disk.threads[-1]:
        await disk.write_and_wait()


async def test_slow_disk_moves_to_a_thread_and_is_tried_again() -> None:
    disk = Disk()
    await make_slow(disk)
    assert disk.threads.count(False) == 3, "an average needs a few"
    for _ in range(1000):
        await disk.write_and_wait()
    assert 6 <= disk.threads.count(False) <= 12, "ever more rarely"
    disk.takes_s = 0
    for _ in range(5000):
        await disk.write_and_wait()
    assert not any(disk.threads[-100:]), "a disk that became quick is trusted again"
    await disk.commit.close()


async def test_one_stall_does_not_condemn_a_disk() -> None:
    disk = Disk()
    for number in range(300):
        disk.takes_s = 9 * SLOW_S if number % 100 == 50 else SLOW_S / 10
        await disk.write_and_wait()
    assert not any(disk.threads)
    await disk.commit.close()


async def test_those_who_come_during_a_slow_sync_share_the_next() -> None:
    disk = Disk()
    await make_slow(disk)
    before, begun = disk.written, len(disk.threads)
    disk.gate = threading.Event()
    waiters = [asyncio.create_task(disk.write_and_wait())]
    while len(disk.threads) == begun:
        await asyncio.sleep(0)
    waiters += [asyncio.create_task(disk.write_and_wait()) for _ in range(20)]
    await asyncio.sleep(0)
    assert disk.commit.busy
    disk.gate.set()
    await asyncio.gather(*waiters)
    assert disk.settled[-2:] == [before + 1, before + 21]
    await disk.commit.close()


@pytest.mark.parametrize("threaded", [False, True])
async def test_failure_reaches_every_waiter_now_and_later(threaded: bool) -> None:
    disk = Disk()
    if threaded:
        await make_slow(disk)
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


async def test_patient_waiters_share_a_sync_in_the_thread() -> None:
    disk = Disk()
    await asyncio.gather(*(disk.write_and_wait(patient=True) for _ in range(3)))
    assert (disk.settled, disk.threads) == ([3], [True])
    await disk.commit.close()


async def test_a_crowd_of_patient_waiters_is_synced_without_lingering() -> None:
    disk = Disk()
    lingering = asyncio.create_task(disk.write_and_wait(patient=True))
    await asyncio.sleep(0)
    others = [asyncio.create_task(disk.write_and_wait(patient=True)) for _ in range(5)]
    await asyncio.sleep(0)
    assert disk.commit._lingering is None, "the sixth ended the lingering"
    await asyncio.gather(lingering, *others)
    assert disk.settled == [6]
    await disk.commit.close()


async def test_an_impatient_waiter_ends_the_lingering_of_others() -> None:
    disk = Disk()
    patient = asyncio.create_task(disk.write_and_wait(patient=True))
    await asyncio.sleep(0)
    await disk.write_and_wait()
    await patient
    assert (disk.settled, disk.threads) == ([2], [False])
    await disk.commit.close()


async def test_closing_hurries_those_who_linger() -> None:
    disk = Disk()
    patient = asyncio.create_task(disk.write_and_wait(patient=True))
    await asyncio.sleep(0)
    await disk.commit.close()
    await patient
    assert disk.settled == [1]


async def test_failure_reaches_patient_waiters() -> None:
    disk = Disk()
    disk.error = OSError("no space")
    with pytest.raises(UnavailableError):
        await disk.write_and_wait(patient=True)
    with pytest.raises(UnavailableError):
        await disk.write_and_wait(patient=True)
    await disk.commit.close()
