"""Runs and calls as the contract `kars.a2a.v1` has them, on top of an agent's server.

A run yields what the agent says in its order. When its task comes to rest the agent's own record follows,
because what was said is not always all that was kept. An agent that does not stream is asked until its task
rests.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from a2a.client import ClientCallContext
from a2a.types import CancelTaskRequest, GetTaskRequest, SendMessageRequest, StreamResponse, Task, TaskState
from kars_common.errors import FailedPreconditionError, InvalidInputError, KarsError
from kars_common.tasks import Backoff

from kars_router.a2a import refusals
from kars_router.a2a.agent import AgentServer

_TERMINAL = frozenset(
    (
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_REJECTED,
    )
)
_RESTS = _TERMINAL | {TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED}


@dataclass(frozen=True)
class Frame:
    """One thing of a run."""

    event: StreamResponse
    snapshot: bool = False


class Deliveries:
    """Delivers to one agent."""

    def __init__(self, server: AgentServer) -> None:
        self._server = server

    async def send(self, request: SendMessageRequest, extensions: tuple[str, ...]) -> AsyncIterator[Frame]:
        """Send a message and follow its task.

        Raises:
            KarsError: with a reason `a2a_...` for what A2A has a name for.
        """
        context = _context(extensions)
        with refusals.mapped():
            streams = (await self._server.card()).capabilities.streaming
            if not streams:
                request.configuration.return_immediately = True
            last: Task | None = None
            async for event in self._server.send(request, context):
                yield Frame(event)
                last = event.task if event.WhichOneof("payload") == "task" else last
                async for frame in self._record(event, context):
                    yield frame
        if not streams and last is not None and last.status.state not in _RESTS:
            async for frame in self._ask_until_rest(last, context):
                yield frame

    async def follow(self, task_id: str) -> AsyncIterator[Frame]:
        """Follow a task; the first frame is the task as it is.

        Raises:
            KarsError: as above; `a2a_unsupported_operation` for one that has ended.
        """
        context = _context(())
        with refusals.mapped():
            if not (await self._server.card()).capabilities.streaming:
                task = await self._server.get_task(GetTaskRequest(id=task_id), context)
                yield Frame(StreamResponse(task=task))
                if task.status.state not in _RESTS:
                    async for frame in self._ask_until_rest(task, context):
                        yield frame
                return
            async for event in self._server.subscribe(task_id, context):
                yield Frame(event)
                async for frame in self._record(event, context):
                    yield frame

    async def get_task(self, request: GetTaskRequest, extensions: tuple[str, ...]) -> Task:
        """Return the agent's record of a task."""
        with refusals.mapped():
            return await self._server.get_task(request, _context(extensions))

    async def cancel_task(self, request: CancelTaskRequest, extensions: tuple[str, ...]) -> Task:
        """Cancel a task."""
        with refusals.mapped():
            return await self._server.cancel_task(request, _context(extensions))

    async def card(self) -> bytes:
        """Return the agent's card, serialised, as it is now."""
        with refusals.mapped():
            return (await self._server.card(fresh=True)).SerializeToString()

    async def extended_card(self) -> bytes:
        """Return the agent's extended card, serialised."""
        with refusals.mapped():
            if not (await self._server.card()).capabilities.extended_agent_card:
                raise FailedPreconditionError("a2a_unsupported_operation", "the agent has no extended card")
            return (await self._server.extended_card(_context(()))).SerializeToString()

    async def _record(self, event: StreamResponse, context: ClientCallContext) -> AsyncIterator[Frame]:
        """Yield the agent's record after an event with which its task comes to rest."""
        kind = event.WhichOneof("payload")
        if kind not in ("task", "status_update"):
            return
        task_id = event.task.id if kind == "task" else event.status_update.task_id
        status = event.task.status if kind == "task" else event.status_update.status
        if status.state not in _RESTS:
            return
        try:
            with refusals.mapped():
                task = await self._server.get_task(GetTaskRequest(id=task_id), context)
        except KarsError:
            return  # an agent that forgets at once has said everything in its events
        yield Frame(StreamResponse(task=task), snapshot=True)

    async def _ask_until_rest(self, task: Task, context: ClientCallContext) -> AsyncIterator[Frame]:
        backoff = Backoff(first_s=0.1, most_s=5.0)
        with refusals.mapped():
            while task.status.state not in _RESTS:
                await backoff.wait()
                fresh = await self._server.get_task(GetTaskRequest(id=task.id), context)
                if fresh != task:
                    backoff.reset()
                    task = fresh
                    yield Frame(StreamResponse(task=task))


def _context(extensions: tuple[str, ...]) -> ClientCallContext:
    """Return the parameters of one call; nothing of the outside caller's headers is in them."""
    parameters = {"A2A-Extensions": ",".join(extensions)} if extensions else {}
    return ClientCallContext(service_parameters=parameters)


def check_envelope(namespace: str, name: str, wanted: tuple[str, str]) -> None:
    """Refuse what is meant for another agent.

    Raises:
        InvalidInputError: `wrong_agent`.
    """
    if (namespace, name) != wanted:
        raise InvalidInputError("wrong_agent", f"this router is in front of {wanted[0]}/{wanted[1]}")


__all__ = ["Deliveries", "Frame", "check_envelope"]
