"""Agents are not trusted: answers must be about the task that was asked for, and the caller's own."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from a2a.types import (
    Message,
    Part,
    SendMessageRequest,
    StreamResponse,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from kars.a2a.v1 import delivery_pb2
from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.errors import A2AError, Kind, unavailable
from kars_a2a_gateway.policy.exposures import Exposure, Limits
from kars_a2a_gateway.storage.sqlite import SqliteDatabase
from kars_a2a_gateway.tasks import index
from kars_a2a_gateway.tasks.index import Context
from kars_a2a_gateway.tasks.owners import Owner
from kars_a2a_gateway.tasks.runs import Runs, Sending
from kars_a2a_gateway.tasks.subscribers import Subscription

ALICE, BOB = Owner("team/writer", "alice"), Owner("team/writer", "bob")


class Log:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []

    def append(self, type: str, fields: Any) -> int:  # noqa: A002
        self.records.append((type, dict(fields)))
        return len(self.records) - 1

    async def durable(self, seq: int, *, patient: bool = False) -> None:
        pass


class ScriptedAgents:
    """Answers each run with the next script: events, snapshots, or an error."""

    def __init__(self) -> None:
        self.scripts: list[list[Any]] = []
        self.requests: list[delivery_pb2.RunRequest] = []
        self.gate: asyncio.Event | None = None

    async def call(self, *_: Any) -> bytes:
        raise A2AError(Kind.TASK_NOT_FOUND, "task not found")

    async def run(
        self, exposure: Exposure, request: delivery_pb2.RunRequest
    ) -> AsyncGenerator[delivery_pb2.RunResponse, None]:
        self.requests.append(request)
        for item in self.scripts.pop(0) if self.scripts else [A2AError(Kind.TASK_NOT_FOUND, "gone")]:
            if isinstance(item, A2AError):
                raise item
            if isinstance(item, asyncio.Event):
                await item.wait()
                continue
            kind = (
                delivery_pb2.FRAME_KIND_SNAPSHOT if isinstance(item, Task) else delivery_pb2.FRAME_KIND_EVENT
            )
            event = StreamResponse(task=item) if isinstance(item, Task) else item
            frame = delivery_pb2.Frame(kind=kind, stream_response=event.SerializeToString())
            yield delivery_pb2.RunResponse(frames=[frame])


class House:
    def __init__(self, directory: Path) -> None:
        self.database = SqliteDatabase(directory / "tasks.sqlite")
        self.agents = ScriptedAgents()
        self.log = Log()
        self.exposure = Exposure(
            namespace="team",
            name="writer",
            endpoint="x:1",
            enabled=True,
            expires_at=None,
            skills=(),
            callers=(),
            skill_rules={},
            anonymous=True,
            allow_streaming=True,
            allow_push=True,
            allow_extended_card=True,
            card_keys=(),
            require_signed_card=False,
            limits=Limits(
                max_body_bytes=1,
                caller_rate_per_s=1,
                caller_burst=1,
                agent_rate_per_s=1,
                agent_burst=1,
                max_streams=1,
                max_open_tasks=1,
                max_stream_s=5,
                max_push_configs=1,
            ),
            allowed_origins=frozenset(),
            push_hosts=(),
        )
        self.runs = Runs(
            self.database,
            self.agents,
            Recorder(self.log),
            lambda _: self.exposure,
            lambda *_: delivery_pb2.Envelope(),
            worker="w",
            shared=False,
            now_ns=lambda: 1_700_000_000_000_000_000,
            pushes_queued=lambda: None,
        )

    def sending(self, owner: Owner, context: Context | None = None, **message: Any) -> Sending:
        request = SendMessageRequest(
            message=Message(message_id=str(uuid.uuid4()), parts=[Part(text="x")], **message)
        )
        return Sending(
            exposure=self.exposure,
            owner=owner,
            envelope=delivery_pb2.Envelope(call_id="c"),
            request=request,
            context=context or Context(),
            message_id=request.message.message_id,
            remember=True,
            listen=True,
        )

    async def send(self, owner: Owner, *script: Any, **fields: Any) -> Any:
        self.agents.scripts.append(list(script))
        return await self.runs.send(self.sending(owner, **fields))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    await house.runs.close()
    await house.database.close()


def began(
    task_id: str = "t1", context: str = "c1", state: int = TaskState.TASK_STATE_WORKING
) -> StreamResponse:
    task = Task(id=task_id, context_id=context)
    task.status.state = state  # type: ignore[assignment]  # an int, at run time
    return StreamResponse(task=task)


def status(state: int, task_id: str = "t1", context: str = "c1") -> StreamResponse:
    return StreamResponse(
        status_update=TaskStatusUpdateEvent(
            task_id=task_id,
            context_id=context,
            status=TaskStatus(state=state),  # type: ignore[arg-type]  # an int, at run time
        )
    )


def artifact(task_id: str) -> StreamResponse:
    event = TaskArtifactUpdateEvent(task_id=task_id, context_id="c1")
    event.artifact.artifact_id = "a"
    event.artifact.parts.add(text="stolen")
    return StreamResponse(artifact_update=event)


DONE = status(TaskState.TASK_STATE_COMPLETED)


async def shown(subscription: Subscription | None) -> list[StreamResponse]:
    assert subscription is not None
    async with asyncio.timeout(5):
        return [event async for event in subscription.events(5)]


async def test_a_task_of_somebody_else_is_no_answer(house: House) -> None:
    await house.send(ALICE, began("t1"), DONE)
    with pytest.raises(A2AError) as refusal:
        await house.send(BOB, began("t1", "c2"), DONE)
    assert refusal.value.kind is Kind.INVALID_AGENT_RESPONSE
    assert await house.database.run(lambda: index.find(BOB, "t1")) is None


async def test_a_context_of_somebody_else_is_no_answer(house: House) -> None:
    await house.send(ALICE, began("t1", "c1"), DONE)
    with pytest.raises(A2AError) as refusal:
        await house.send(BOB, began("t2", "c1"), DONE)
    assert refusal.value.kind is Kind.INVALID_AGENT_RESPONSE


async def test_a_message_in_a_context_of_somebody_else_is_no_answer(house: House) -> None:
    await house.send(ALICE, began("t1", "c1"), DONE)
    reply = StreamResponse(message=Message(message_id="m", context_id="c1", parts=[Part(text="stolen")]))
    with pytest.raises(A2AError):
        await house.send(BOB, reply)


async def test_an_answer_in_another_context_than_was_asked_is_refused(house: House) -> None:
    with pytest.raises(A2AError):
        await house.send(ALICE, began("t1", "other"), DONE, context=Context(outer="mine", inner="mine"))


async def test_events_of_another_task_are_not_shown(house: House) -> None:
    # The stream that broke with the stolen event is followed again.
    house.agents.scripts = [[began("t1"), artifact("t9"), DONE], [began("t1"), DONE]]
    started = await house.runs.send(house.sending(ALICE))

    events = await shown(started.subscription)

    assert "stolen" not in str(events)
    assert events[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED


async def test_nothing_follows_an_end(house: House) -> None:
    started = await house.send(ALICE, began(), DONE, status(TaskState.TASK_STATE_WORKING))

    events = await shown(started.subscription)

    assert [e.WhichOneof("payload") for e in events] == ["task", "status_update"]
    row = await house.database.run(lambda: index.find(ALICE, "t1"))
    assert row is not None
    assert row.ended


async def test_a_refused_message_may_be_sent_again(house: House) -> None:
    with pytest.raises(A2AError):
        await house.send(ALICE, unavailable("away"))
    started = await house.send(ALICE, began(), DONE)
    assert started.run.task_id == "t1"


async def test_an_agent_that_says_nothing_is_said_to(house: House) -> None:
    with pytest.raises(A2AError) as refusal:
        await house.send(ALICE)
    assert refusal.value.kind is Kind.INVALID_AGENT_RESPONSE


@pytest.mark.parametrize("event", [StreamResponse(), began("x" * 300), began("a\nb"), began("")])
async def test_odd_first_answers_are_refused(house: House, event: StreamResponse) -> None:
    with pytest.raises(A2AError) as refusal:
        await house.send(ALICE, event)
    assert refusal.value.kind is Kind.INVALID_AGENT_RESPONSE


async def test_register_33_and_38_a_broken_stream_is_taken_up_and_the_task_ends(house: House) -> None:
    house.agents.scripts = [[began(), unavailable("broke")], [began(), DONE]]
    started = await house.runs.send(house.sending(ALICE))

    events = await shown(started.subscription)

    assert events[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
    assert house.agents.requests[1].follow_task == "t1"
    assert [kind for kind, _ in house.log.records] == ["a2a.task_created", "a2a.task_ended"]


async def test_a_task_that_the_agent_forgot_fails_for_its_owner(house: House) -> None:
    house.agents.scripts = [[began(), unavailable("broke")]]
    started = await house.runs.send(house.sending(ALICE))

    events = await shown(started.subscription)

    assert events[-1].status_update.status.state == TaskState.TASK_STATE_FAILED


async def test_the_agents_own_record_is_stored_and_not_shown(house: House) -> None:
    record = Task(id="t1", context_id="c1")
    record.status.state = TaskState.TASK_STATE_COMPLETED
    record.history.add(message_id="from the record")
    started = await house.send(ALICE, began(), DONE, record)

    events = await shown(started.subscription)
    await started.run.settled()

    assert "from the record" not in str(events)
    row = await house.database.run(lambda: index.find(ALICE, "t1"))
    assert row is not None
    assert row.task().history[0].message_id == "from the record"


async def test_a_slow_reader_is_ended_and_holds_nobody_up(house: House) -> None:
    many = [artifact("t1") for _ in range(400)]
    for number, event in enumerate(many):
        event.artifact_update.artifact.artifact_id = f"a{number}"
    started = await house.send(ALICE, began(), *many, DONE)
    async with asyncio.timeout(10):
        await started.run.wait_rest()

    with pytest.raises(A2AError) as refusal:
        await shown(started.subscription)
    assert refusal.value.kind is Kind.QUOTA_EXCEEDED
    assert len(started.run.task.artifacts) == 400
