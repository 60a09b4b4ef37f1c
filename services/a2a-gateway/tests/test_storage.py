"""The same promises on SQLite and on a real PostgreSQL: ownership, idempotency, pages, order, leases."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from a2a.types import ListTasksRequest, Task, TaskPushNotificationConfig, TaskState
from kars_a2a_gateway.errors import A2AError
from kars_a2a_gateway.push import outbox
from kars_a2a_gateway.storage.postgres import open_postgres
from kars_a2a_gateway.storage.scripts import Database, Script, Statement
from kars_a2a_gateway.storage.sqlite import SqliteDatabase
from kars_a2a_gateway.tasks import index
from kars_a2a_gateway.tasks.index import Context
from kars_a2a_gateway.tasks.owners import Owner
from kars_a2a_gateway.tasks.pages import Pager

ALICE, BOB = Owner("team/writer", "alice"), Owner("team/writer", "bob")
PAGER = Pager(b"k" * 32)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server from its wheel, on a socket of its own."""
    from kars_a2a_gateway_testkit.postgres import PostgresServer

    with PostgresServer() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        opened: Any = SqliteDatabase(tmp_path / "tasks.sqlite")
    else:
        opened = await open_postgres(request.getfixturevalue("postgres"))

        def empty() -> Script[None]:
            for table in ("tasks", "contexts", "messages", "push_configs", "pushes", "settings"):
                yield Statement(f"DELETE FROM {table}")

        await opened.run(empty)
    yield opened
    await opened.close()


def task(task_id: str = "", state: int = TaskState.TASK_STATE_WORKING, context: str = "c") -> Task:
    made = Task(id=task_id or str(uuid.uuid4()), context_id=context)
    made.status.state = state  # type: ignore[assignment]  # an int, at run time
    return made


async def store(database: Database, owner: Owner, made: Task, updated_ns: int = 1) -> bool:
    context = Context(outer=made.context_id, inner=made.context_id)
    return await database.run(
        lambda: index.insert(owner, made, context, updated_ns=updated_ns, lease_owner="w", lease_until_ms=100)
    )


async def test_a_task_is_its_owners_alone(database: Database) -> None:
    made = task()
    assert await store(database, ALICE, made)
    assert (await database.run(lambda: index.find(ALICE, made.id))) is not None
    assert (await database.run(lambda: index.find(BOB, made.id))) is None
    assert (await database.run(lambda: index.find(Owner("team/other", "alice"), made.id))) is None
    assert not await store(database, BOB, made), "an id that is taken is not taken again"


async def test_what_ended_stays_as_it_ended(database: Database) -> None:
    made = task()
    await store(database, ALICE, made)
    await database.run(lambda: index.update(ALICE.agent, task(made.id, TaskState.TASK_STATE_CANCELED), 2))
    await database.run(lambda: index.update(ALICE.agent, task(made.id, TaskState.TASK_STATE_WORKING), 3))
    row = await database.run(lambda: index.find(ALICE, made.id))
    assert row is not None
    assert row.task().status.state == TaskState.TASK_STATE_CANCELED


async def test_a_context_of_somebody_else_gets_another_name_inside(database: Database) -> None:
    mine = await database.run(lambda: index.resolve_context(ALICE, "shared"))
    again = await database.run(lambda: index.resolve_context(ALICE, "shared"))
    theirs = await database.run(lambda: index.resolve_context(BOB, "shared"))
    assert mine == again == Context(outer="shared", inner="shared")
    assert theirs.outer == "shared"
    assert theirs.inner != "shared"
    assert not await database.run(lambda: index.claim_new_context(BOB, "shared"))


async def test_a_message_is_known_by_its_content(database: Database) -> None:
    def begin(hashed: bytes) -> Script[index.Sent | None]:
        return index.begin_message(ALICE, "m1", hashed, 1)

    assert await database.run(lambda: begin(b"a")) is None
    await database.run(lambda: index.message_became(ALICE, "m1", "t1"))
    assert (await database.run(lambda: begin(b"a"))) == index.Sent(task_id="t1", reply=None)
    assert await database.run(lambda: begin(b"b")) is None, "another message under the same name"
    await database.run(lambda: index.forget_message(ALICE, "m1"))
    assert await database.run(lambda: begin(b"b")) is None, "a refused message may be sent again"


async def test_pages_hold_each_task_once_newest_first(database: Database) -> None:
    ids = [f"t{number:02}" for number in range(23)]
    for number, task_id in enumerate(ids):
        await store(database, ALICE, task(task_id), updated_ns=number // 3)
    await store(database, BOB, task("foreign"), updated_ns=99)

    seen: list[str] = []
    token = ""
    while True:
        request = ListTasksRequest(page_size=5, page_token=token)
        page = await database.run(lambda request=request: PAGER.page(ALICE, request))  # type: ignore[misc]
        seen += [Task.FromString(snapshot).id for snapshot, _, _ in page.rows]
        assert page.total == 23
        token = page.next_token
        if not token:
            break
    assert seen == sorted(ids, key=lambda task_id: (ids.index(task_id) // 3, task_id), reverse=True)


async def test_a_page_token_fits_its_question_only(database: Database) -> None:
    for number in range(3):
        await store(database, ALICE, task(f"t{number}"), updated_ns=number)
    page = await database.run(lambda: PAGER.page(ALICE, ListTasksRequest(page_size=1)))
    for owner, request in (
        (BOB, ListTasksRequest(page_token=page.next_token)),
        (ALICE, ListTasksRequest(page_token=page.next_token, context_id="c")),
        (ALICE, ListTasksRequest(page_token=page.next_token[:-2] + "AA")),
    ):
        with pytest.raises(A2AError):
            await database.run(lambda o=owner, r=request: PAGER.page(o, r))  # type: ignore[misc]


async def test_pushes_leave_in_order_one_at_a_time(database: Database) -> None:
    made = task()
    await store(database, ALICE, made)
    config = TaskPushNotificationConfig(task_id=made.id, id="c", url="https://x")
    assert await database.run(lambda: outbox.put(ALICE.agent, config, 0, 1))
    other = TaskPushNotificationConfig(task_id=made.id, id="d", url="https://x")
    assert not await database.run(lambda: outbox.put(ALICE.agent, other, 0, 1))
    payloads = [bytes([number]) for number in range(3)]
    assert await database.run(lambda: outbox.enqueue(ALICE.agent, made.id, payloads, 0))

    [first] = await database.run(lambda: outbox.take_due("w1", 10, 100, 10))
    assert first.payload == b"\x00"
    assert await database.run(lambda: outbox.take_due("w2", 10, 100, 10)) == [], "another replica waits"
    await database.run(lambda: outbox.postpone(first, 50))
    assert await database.run(lambda: outbox.take_due("w1", 10, 100, 10)) == [], "those behind it wait"
    [again] = await database.run(lambda: outbox.take_due("w2", 60, 100, 10))
    assert (again.id, again.attempts) == (first.id, 1)
    await database.run(lambda: outbox.done(again))
    [second] = await database.run(lambda: outbox.take_due("w1", 60, 100, 10))
    assert second.payload == b"\x01"
    await database.run(lambda: outbox.delete(ALICE.agent, made.id, "c"))
    assert await database.run(outbox.next_due_ms) is None


async def test_abandoned_tasks_are_taken_by_one(database: Database) -> None:
    made = task()
    await store(database, ALICE, made)
    assert await database.run(lambda: index.take_abandoned("w2", 50, 200, 10)) == [], "it is still followed"
    taken = await asyncio.gather(
        *(database.run(lambda w=worker: index.take_abandoned(w, 150, 300, 10)) for worker in ("w2", "w3"))  # type: ignore[misc]
    )
    assert sorted(len(rows) for rows in taken) == [0, 1]


async def test_a_failing_script_takes_back_only_itself(database: Database) -> None:
    made = task()

    def failing() -> Script[None]:
        yield Statement("INSERT INTO settings (name, value) VALUES (?, ?)", ("half", b"x"))
        raise ValueError("in the middle")

    results = await asyncio.gather(
        database.run(failing), store(database, ALICE, made), return_exceptions=True
    )
    assert isinstance(results[0], ValueError)
    assert results[1] is True
    assert await database.run(lambda: index.setting("half", b"fresh")) == b"fresh"


async def test_many_writers_lose_nothing(database: Database) -> None:
    made = [task() for _ in range(100)]
    assert all(await asyncio.gather(*(store(database, ALICE, one) for one in made)))
    assert await database.run(lambda: index.open_tasks(ALICE)) == 100


def test_a_killed_process_keeps_what_was_confirmed(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, signal
from pathlib import Path
from kars_a2a_gateway.storage.sqlite import SqliteDatabase
from kars_a2a_gateway.tasks import index
async def main():
    database = SqliteDatabase(Path({str(tmp_path / "tasks.sqlite")!r}))
    await database.run(lambda: index.setting("kept", b"yes"))
    await database.run(lambda: index.setting("quick", b"yes"), durable=False)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=30)

    async def read() -> list[bytes]:
        database = SqliteDatabase(tmp_path / "tasks.sqlite")
        try:
            return [await database.run(lambda n=name: index.setting(n, b"no")) for name in ("kept", "quick")]  # type: ignore[misc]
        finally:
            await database.close()

    assert asyncio.run(read()) == [b"yes", b"yes"]
