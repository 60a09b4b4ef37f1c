"""GetTask, ListTasks, CancelTask, SubscribeToTask and the extended card."""

from collections.abc import AsyncGenerator

from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
)
from google.protobuf.message import DecodeError
from kars.a2a.v1 import delivery_pb2

from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.cards.shelf import Shelf
from kars_a2a_gateway.errors import A2AError, Kind, task_not_found
from kars_a2a_gateway.inside.delivery import Agents, envelope
from kars_a2a_gateway.limits.streams import StreamSlots
from kars_a2a_gateway.operations.admission import Call
from kars_a2a_gateway.storage.scripts import Database
from kars_a2a_gateway.tasks import events, index, states
from kars_a2a_gateway.tasks.history import shortened
from kars_a2a_gateway.tasks.index import TaskRow
from kars_a2a_gateway.tasks.pages import Pager
from kars_a2a_gateway.tasks.runs import Runs


class Reader:
    """Everything that is asked about tasks that exist."""

    def __init__(
        self,
        database: Database,
        runs: Runs,
        shelf: Shelf,
        agents: Agents,
        *,
        recorder: Recorder,
        pager: Pager,
        slots: StreamSlots,
    ) -> None:
        self._database = database
        self._runs = runs
        self._shelf = shelf
        self._agents = agents
        self._recorder = recorder
        self._pager = pager
        self._slots = slots

    async def get_task(self, call: Call, request: GetTaskRequest) -> Task:
        """Return a task: the stored one when it ended or the agent is away, else the agent's own record."""
        row = await self._find(call, request.id)
        await self._record(call, "GetTask", request.id)
        task = row.task()
        if not row.ended:
            run = self._runs.get(row.owner.agent, row.task_id)
            task = run.task if run is not None else await self._current(call, row)
        return shortened(events.outer_task(task, row.inner_context, row.outer_context), request)

    async def list_tasks(self, call: Call, request: ListTasksRequest) -> ListTasksResponse:
        """Return one page of the caller's tasks, newest first."""
        page = await self._database.run(lambda: self._pager.page(call.owner, request), durable=False)
        await self._record(call, "ListTasks", "")
        response = ListTasksResponse(
            next_page_token=page.next_token, page_size=page.size, total_size=page.total
        )
        for snapshot, inner, outer in page.rows:
            stored = Task.FromString(snapshot)
            run = self._runs.get(call.owner.agent, stored.id)
            task = shortened(
                events.outer_task(run.task if run is not None else stored, inner, outer), request
            )
            listed = response.tasks.add()
            listed.CopyFrom(task)
            if not request.include_artifacts:
                listed.ClearField("artifacts")
        return response

    async def cancel_task(self, call: Call, request: CancelTaskRequest) -> Task:
        """Ask the agent to cancel, and return what the task is then."""
        row = await self._find(call, request.id)
        run = self._runs.get(row.owner.agent, row.task_id)
        if row.ended or (run is not None and states.ended(run.task)):
            raise A2AError(Kind.TASK_NOT_CANCELABLE, "the task has ended")
        await self._record(call, "CancelTask", request.id)
        inward = CancelTaskRequest(id=request.id)
        inward.metadata.MergeFrom(request.metadata)
        answer = await self._ask(call, delivery_pb2.CALL_METHOD_CANCEL_TASK, inward.SerializeToString())
        event = _task_event(answer)
        if run is None:
            run = await self._runs.follow(call.exposure, row)
        await run.apply(event)
        return (
            run.seen_by_caller()
            if states.ended(run.task)
            else events.outer_task(event.task, row.inner_context, row.outer_context)
        )

    async def subscribe(
        self, call: Call, request: SubscribeToTaskRequest
    ) -> AsyncGenerator[StreamResponse, None]:
        """Yield the task as it is, then what happens to it until it ends."""
        card = (await self._shelf.public(call.exposure, call.table)).card
        if not card.capabilities.streaming:
            raise A2AError(Kind.UNSUPPORTED_OPERATION, "this agent does not stream")
        row = await self._find(call, request.id)
        if row.ended:
            raise A2AError(Kind.UNSUPPORTED_OPERATION, "the task has ended; get it instead")
        with self._slots.hold(call.owner, call.exposure.limits.max_streams):
            await self._record(call, "SubscribeToTask", request.id)
            run = await self._runs.follow(call.exposure, row)
            subscription = run.subscribe(with_task=True)
            try:
                async for event in subscription.events(call.exposure.limits.max_stream_s):
                    yield event
            finally:
                run.unsubscribe(subscription)

    async def extended_card(self, call: Call) -> AgentCard:
        """Return the extended card for this caller."""
        card = (await self._shelf.public(call.exposure, call.table)).card
        if not card.capabilities.extended_agent_card:
            raise A2AError(Kind.UNSUPPORTED_OPERATION, "this agent has no extended card")
        if not call.principal.proven and call.exposure.callers:
            raise A2AError(Kind.UNAUTHENTICATED, "the extended card is for callers that prove who they are")
        await self._record(call, "GetExtendedAgentCard", "")
        return await self._shelf.extended(
            call.exposure, call.table, call.principal, envelope(call.exposure, call.principal, call.id)
        )

    async def _current(self, call: Call, row: TaskRow) -> Task:
        """Ask the agent for its record; one that is away changes nothing."""
        try:
            answer = await self._ask(
                call, delivery_pb2.CALL_METHOD_GET_TASK, GetTaskRequest(id=row.task_id).SerializeToString()
            )
        except A2AError as error:
            if error.kind in (Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED, Kind.TASK_NOT_FOUND):
                return row.task()
            raise
        event = _task_event(answer)
        run = await self._runs.follow(call.exposure, row)
        await run.apply(event)
        return run.task

    async def _find(self, call: Call, task_id: str) -> TaskRow:
        row = await self._database.run(lambda: index.find(call.owner, task_id), durable=False)
        if row is None:
            raise task_not_found()
        return row

    async def _ask(self, call: Call, method: "delivery_pb2.CallMethod.ValueType", request: bytes) -> bytes:
        vouched = envelope(call.exposure, call.principal, call.id, call.active, call.traceparent)
        return await self._agents.call(call.exposure, vouched, method, request)

    async def _record(self, call: Call, method: str, task_id: str) -> None:
        fields = {"task": task_id, "peer": call.peer}
        await self._recorder.durable(self._recorder.call(call.id, call.owner, call.principal, method, fields))


def _task_event(answer: bytes) -> StreamResponse:
    try:
        event = StreamResponse(task=Task.FromString(answer))
    except DecodeError as exc:
        raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent answered with no task") from exc
    events.check_ids(event)
    return event
