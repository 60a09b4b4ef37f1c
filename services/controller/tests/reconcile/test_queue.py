"""The work queue: a key is never in work twice, and never lost."""

import asyncio

from kars_controller.reconcile.queue import WorkQueue


async def take(queue: WorkQueue[str]) -> str:
    async with asyncio.timeout(5):
        return await queue.get()


async def test_a_key_added_twice_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert [await take(queue), await take(queue)] == ["a", "b"]


async def test_a_key_added_while_in_work_comes_again_afterwards_and_not_before() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.add("b")
    assert await waiting == "b"
    again = asyncio.create_task(queue.get())
    queue.done("a")
    assert await asyncio.wait_for(again, 5) == "a"


async def test_a_sooner_addition_replaces_a_later_one() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 3600)
    queue.add("a", 0.01)
    assert await take(queue) == "a"
    queue.close()


async def test_failures_wait_longer_each_time_until_a_success() -> None:
    queue: WorkQueue[str] = WorkQueue(first_retry_s=1, most_retry_s=8)
    waits = [queue.failed("a") for _ in range(6)]
    assert waits[0] <= 1
    assert 4 <= waits[-1] <= 8
    queue.succeeded("a")
    assert queue.failed("a") <= 1
    queue.close()
