"""Following tasks: from the message that makes one until nothing more happens, whoever is still connected.

A task is followed by a stream to its router. The stream is opened by a message, or again when it broke, or
when a process that followed the task is gone (leases). Each running task has one follower in all replicas
together; what a follower missed comes as the task itself, the first thing that every new stream says.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field

from a2a.types import (
    GetTaskRequest,
    Message,
    SendMessageRequest,
    StreamResponse,
    Task,
    TaskPushNotificationConfig,
    TaskState,
)
from google.protobuf.message import DecodeError
from kars.a2a.v1 import delivery_pb2
from kars_common.errors import KarsError, UnavailableError
from kars_common.tasks import Backoff

from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.errors import A2AError, Kind
from kars_a2a_gateway.inside.delivery import Agents
from kars_a2a_gateway.policy.exposures import Exposure
from kars_a2a_gateway.push import outbox
from kars_a2a_gateway.storage.scripts import Database, Script
from kars_a2a_gateway.tasks import events, index, states
from kars_a2a_gateway.tasks.index import Context, TaskRow
from kars_a2a_gateway.tasks.owners import Owner
from kars_a2a_gateway.tasks.run import Run, state_name
from kars_a2a_gateway.tasks.subscribers import Subscription

_LOG = logging.getLogger(__name__)
_LEASE_MS = 30_000
_RENEW_S = 8.0
_TAKE_AT_ONCE = 256
_EVERYTHING_MS = 2**62
_GATHER_MS = 20

Envelopes = Callable[[Exposure, Owner], delivery_pb2.Envelope]
"""Makes the envelope under which the gateway itself follows a task of an owner."""


@dataclass(kw_only=True)
class Sending:
    """One message on its way, and what the gateway does with what it makes."""

    exposure: Exposure
    owner: Owner
    envelope: delivery_pb2.Envelope
    request: SendMessageRequest
    """As the agent gets it: its own name for the context, no push configuration."""
    context: Context
    message_id: str
    remember: bool
    """Whether the message is noted for idempotency."""
    push_config: bytes | None = None
    """A serialised TaskPushNotificationConfig that came with the message; its task id is set here."""
    listen: bool = False
    started: "asyncio.Future[Started]" = field(init=False)

    def __post_init__(self) -> None:
        self.started = asyncio.get_running_loop().create_future()


@dataclass(frozen=True, kw_only=True)
class Started:
    """What the first answer of the agent was: a message, or a task that is being followed."""

    message: Message | None = None
    run: Run | None = None
    subscription: Subscription | None = None


class Runs:
    """Every task that this process follows. `run` keeps the leases; `close` ends all following."""

    def __init__(
        self,
        database: Database,
        agents: Agents,
        recorder: Recorder,
        find_exposure: Callable[[str], Exposure | None],
        envelopes: Envelopes,
        *,
        worker: str,
        shared: bool,
        now_ns: Callable[[], int],
        pushes_queued: Callable[[], None],
    ) -> None:
        """Build; nothing is followed before `run` or `send`.

        Args:
            database: the index and the outbox.
            agents: the way inside.
            recorder: the audit log.
            find_exposure: an agent that policy exposes now.
            envelopes: for following without a caller.
            worker: name of this process in leases.
            shared: other replicas use the same database.
            now_ns: time since the epoch.
            pushes_queued: called when pushes wait.
        """
        self._database = database
        self._agents = agents
        self._recorder = recorder
        self._find_exposure = find_exposure
        self._envelopes = envelopes
        self._worker = worker
        self._shared = shared
        self._now_ns = now_ns
        self._pushes_queued = pushes_queued
        self._runs: dict[tuple[str, str], Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def followed(self) -> int:
        """How many tasks are followed now."""
        return len(self._runs)

    def get(self, agent: str, task_id: str) -> Run | None:
        """Return a task that is followed here."""
        return self._runs.get((agent, task_id))

    async def run(self) -> None:
        """Take over what nobody follows, and say for ever that this process lives."""
        everything = not self._shared  # nobody else has this file: whoever held a lease is gone
        while True:
            try:
                await self._take_over(_EVERYTHING_MS if everything else self._now_ms())
                everything = False
                until_ms = self._now_ms() + _LEASE_MS
                await self._database.run(
                    lambda until=until_ms: index.renew_leases(self._worker, until),  # type: ignore[misc]
                    durable=False,
                )
            except UnavailableError:
                _LOG.warning("leases not renewed: no database")
            await asyncio.sleep(_RENEW_S)

    async def close(self) -> None:
        """End all following; the tasks go on, and the next process takes them up."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for run in list(self._runs.values()):
            run.finish()
        self._runs.clear()

    async def send(self, sending: Sending) -> Started:
        """Send a message; returns with the agent's first answer, which is stored by then.

        The task is followed whether or not the caller waits for anything.

        Raises:
            A2AError: the agent or the way to it refused.
        """
        self._spawn(self._carry(sending), f"send {sending.message_id[:40]}")
        return await asyncio.shield(sending.started)

    async def follow(self, exposure: Exposure, row: TaskRow) -> Run:
        """Return the run of a task that has not ended, following it again if nobody here does."""
        held = self.get(row.owner.agent, row.task_id)
        if held is not None:
            return held
        run = self._open(row.owner, row.task(), Context(outer=row.outer_context, inner=row.inner_context))
        self._spawn(self._follow(exposure, run), f"follow {row.task_id[:40]}")
        return run

    async def _carry(self, sending: Sending) -> None:
        """Carry one message: hand the first answer to whoever sent it, then follow."""
        run: Run | None = None
        try:
            request = delivery_pb2.RunRequest(
                envelope=sending.envelope,
                send_message=sending.request.SerializeToString(),
                gather_ms=0 if sending.listen or sending.push_config is not None else _GATHER_MS,
            )
            async with contextlib.aclosing(self._agents.run(sending.exposure, request)) as source:
                async for response in source:
                    frames = list(response.frames)
                    if run is None and frames:
                        run = await self._first(sending, _event(frames.pop(0)))
                        if run is None:
                            return
                    if run is not None and frames:
                        await _apply(run, frames)
            if run is None:
                raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent said nothing")  # noqa: TRY301
        except (A2AError, KarsError) as error:
            if not sending.started.done():
                await self._refused(sending, error)
                return
            self._say_broken(error, run)
        finally:
            if not sending.started.done():
                sending.started.set_exception(A2AError(Kind.UNAVAILABLE, "the gateway stops"))
                sending.started.exception()  # seen, if nobody waits any more
            if run is not None:
                run.sources -= 1
        if run is not None:
            await self._afterwards(sending.exposure, run)

    async def _first(self, sending: Sending, event: StreamResponse) -> Run | None:
        """Store the first answer and tell whoever sent the message."""
        events.check_ids(event)
        task_id = sending.request.message.task_id
        if event.WhichOneof("payload") == "message":
            await self._replied(sending, event.message)
            return None
        if task_id:
            run = await self._continued(sending, event)
        else:
            run = await self._created(sending, event)
        subscription = None
        if sending.listen:
            # Nothing was shown before there was somebody to show it to: the first event is shown now.
            subscription = run.subscribe(with_task=False)
            run.greet(subscription, event)
        sending.started.set_result(Started(run=run, subscription=subscription))
        return run

    async def _created(self, sending: Sending, event: StreamResponse) -> Run:
        """Store a new task, its context, its message and its push configuration in one transaction."""
        task = _initial(sending, event)
        inner = task.context_id
        if sending.context.inner and inner != sending.context.inner:
            raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent answered in another context")
        context = sending.context if sending.context.inner else Context(outer=inner, inner=inner)
        run = self._new_run(sending.owner, task, context)
        now_ms = self._now_ms()

        def script() -> Script[str]:
            if not sending.context.inner and not (yield from index.claim_new_context(sending.owner, inner)):
                return "context"
            stored = yield from index.insert(
                sending.owner,
                task,
                context,
                updated_ns=run.updated_ns(task),
                lease_owner=self._worker,
                lease_until_ms=now_ms + _LEASE_MS,
            )
            if not stored:
                return "task"
            if sending.remember:
                yield from index.message_became(sending.owner, sending.message_id, task.id)
            if sending.push_config is not None:
                config = TaskPushNotificationConfig.FromString(sending.push_config)
                config.task_id = task.id
                yield from outbox.put(sending.owner.agent, config, now_ms, 1)
                yield from outbox.enqueue(sending.owner.agent, task.id, (run.payload_of(event),), now_ms)
            return ""

        foreign = await self._database.run(script)
        if foreign:
            raise A2AError(
                Kind.INVALID_AGENT_RESPONSE, f"the agent answered with a {foreign} of somebody else"
            )
        if sending.push_config is not None:
            self._pushes_queued()
        run.stores_every_event = self._shared or sending.push_config is not None
        run.sources = 1
        run.begun()
        self._runs[sending.owner.agent, task.id] = run
        fields = {"state": state_name(task), "call": sending.envelope.call_id}
        self._recorder.task("created", sending.owner, task.id, fields)
        if states.ended(task):
            self._recorder.task("ended", sending.owner, task.id, {"state": state_name(task)})
        return run

    async def _continued(self, sending: Sending, event: StreamResponse) -> Run:
        """Apply the first answer to a message for a task that exists."""
        task_id = sending.request.message.task_id
        row = await self._database.run(lambda: index.find(sending.owner, task_id), durable=False)
        if row is None:
            raise A2AError(Kind.TASK_NOT_FOUND, "task not found")
        context = Context(outer=row.outer_context, inner=row.inner_context)
        events.check_belongs(event, task_id, context.inner)
        run = self.get(sending.owner.agent, task_id) or self._open(sending.owner, row.task(), context)
        run.sources += 1
        if len(run.task.history) < events.MAX_HISTORY and event.WhichOneof("payload") != "task":
            run.task.history.append(sending.request.message)
        now_ms = self._now_ms()

        def script() -> Script[None]:
            yield from index.take(sending.owner.agent, task_id, self._worker, now_ms + _LEASE_MS)
            if sending.remember:
                yield from index.message_became(sending.owner, sending.message_id, task_id)
            if sending.push_config is not None:
                config = TaskPushNotificationConfig.FromString(sending.push_config)
                config.task_id = task_id
                yield from outbox.put(
                    sending.owner.agent, config, now_ms, sending.exposure.limits.max_push_configs
                )

        await self._database.run(script)
        run.stores_every_event = True
        await run.apply(event)
        return run

    async def _replied(self, sending: Sending, message: Message) -> None:
        """Hand over a message; its context, if new, is the caller's from now on."""
        inner = message.context_id
        if sending.context.inner and inner and inner != sending.context.inner:
            raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent answered in another context")

        def script() -> Script[bool]:
            if (
                inner
                and not sending.context.inner
                and not (yield from index.claim_new_context(sending.owner, inner))
            ):
                return False
            if sending.remember:
                yield from index.message_answered(
                    sending.owner, sending.message_id, message.SerializeToString()
                )
            return True

        if not await self._database.run(script):
            raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent answered with a context of somebody else")
        shown = Message()
        shown.CopyFrom(message)
        if sending.context.inner and shown.context_id == sending.context.inner:
            shown.context_id = sending.context.outer
        sending.started.set_result(Started(message=shown))

    async def _refused(self, sending: Sending, error: A2AError | KarsError) -> None:
        if sending.remember:
            try:
                await self._database.run(lambda: index.forget_message(sending.owner, sending.message_id))
            except UnavailableError:
                _LOG.warning("a refused message stays noted: no database")
        if isinstance(error, KarsError):
            error = A2AError(Kind.UNAVAILABLE, "the gateway cannot store tasks now")
        sending.started.set_exception(error)
        sending.started.exception()  # seen, if nobody waits any more

    async def _afterwards(self, exposure: Exposure, run: Run) -> None:
        """After a stream ended: the task is over, rests, or must be followed again."""
        if run.sources > 0 or self._closing:
            return
        if states.ended(run.task) or run.task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED:
            await self._let_go(run)
            return
        await self._follow(exposure, run)

    async def _follow(self, exposure: Exposure, run: Run) -> None:
        """Follow a task until it ends or waits for its caller, whatever breaks on the way."""
        backoff = Backoff(first_s=0.2, most_s=30.0)
        run.sources += 1
        try:
            while not states.ended(run.task):
                before = run.task.status.state
                if await self._follow_once(exposure, run):
                    backoff.reset()
                if run.task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED or run.sources > 1:
                    break
                if run.task.status.state == before:
                    await backoff.wait()
        finally:
            run.sources -= 1
        if run.sources == 0:
            await self._let_go(run)

    async def _follow_once(self, exposure: Exposure, run: Run) -> bool:
        """Follow one stream; tells whether it said anything."""
        heard = False
        current = self._find_exposure(run.owner.agent) or exposure
        request = delivery_pb2.RunRequest(
            envelope=self._envelopes(current, run.owner), follow_task=run.task_id
        )
        try:
            async with contextlib.aclosing(self._agents.run(current, request)) as source:
                async for response in source:
                    heard = True
                    await _apply(run, response.frames)
        except A2AError as error:
            if error.kind is Kind.TASK_NOT_FOUND:
                await self._lost(run)
            elif error.kind is Kind.UNSUPPORTED_OPERATION:
                await self._ask(current, run)
            else:
                self._say_broken(error, run)
        except KarsError as error:
            self._say_broken(error, run)
        return heard

    async def _ask(self, exposure: Exposure, run: Run) -> None:
        """Ask for the task itself, where the agent does not let it be followed."""
        try:
            answer = await self._agents.call(
                exposure,
                self._envelopes(exposure, run.owner),
                delivery_pb2.CALL_METHOD_GET_TASK,
                GetTaskRequest(id=run.task_id).SerializeToString(),
            )
            event = StreamResponse(task=Task.FromString(answer))
            await run.apply(event)
        except DecodeError:
            _LOG.warning("an agent answered with no task", extra={"agent": run.owner.agent})
        except A2AError as error:
            if error.kind is Kind.TASK_NOT_FOUND:
                await self._lost(run)
            else:
                self._say_broken(error, run)
        except KarsError as error:
            self._say_broken(error, run)

    async def _lost(self, run: Run) -> None:
        """The agent no longer knows the task: say so to its owner, instead of waiting for ever."""
        event = StreamResponse()
        event.status_update.task_id = run.task_id
        event.status_update.context_id = run.context.inner
        event.status_update.status.state = TaskState.TASK_STATE_FAILED
        event.status_update.status.timestamp.FromNanoseconds(self._now_ns())
        event.status_update.metadata["kars.azure.com/reason"] = "the agent no longer knows this task"
        try:
            await run.apply(event)
        except KarsError as error:
            self._say_broken(error, run)

    async def _let_go(self, run: Run) -> None:
        run.finish()
        self._runs.pop((run.owner.agent, run.task_id), None)
        if states.ended(run.task):
            return  # the lease of what ended is never looked at
        try:
            await self._database.run(
                lambda: index.release(run.owner.agent, run.task_id, self._worker), durable=False
            )
        except UnavailableError:
            _LOG.warning("a resting task keeps its lease: no database")

    async def _take_over(self, now_ms: int) -> None:
        until_ms = self._now_ms() + _LEASE_MS
        rows = await self._database.run(
            lambda: index.take_abandoned(self._worker, now_ms, until_ms, _TAKE_AT_ONCE)
        )
        for row in rows:
            exposure = self._find_exposure(row.owner.agent)
            if exposure is not None:
                await self.follow(exposure, row)
            # Without an exposure the lease runs out, and it is asked again then.

    def _open(self, owner: Owner, task: Task, context: Context) -> Run:
        run = self._new_run(owner, task, context)
        self._runs[owner.agent, task.id] = run
        return run

    def _new_run(self, owner: Owner, task: Task, context: Context) -> Run:
        return Run(
            owner,
            task,
            context,
            self._database,
            self._recorder,
            now_ns=self._now_ns,
            pushes_queued=self._pushes_queued,
        )

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("following a task failed", exc_info=task.exception())

    def _say_broken(self, error: A2AError | KarsError, run: Run | None) -> None:
        agent = run.owner.agent if run is not None else ""
        _LOG.info("a stream of an agent ended early", extra={"agent": agent, "error": str(error)})

    def _now_ms(self) -> int:
        return self._now_ns() // 1_000_000


async def _apply(run: Run, frames: Iterable[delivery_pb2.Frame]) -> None:
    """Apply what came together: events, and the agent's record where one ends them."""
    found: list[StreamResponse] = []
    for frame in frames:
        event = _event(frame)
        if frame.kind != delivery_pb2.FRAME_KIND_SNAPSHOT:
            found.append(event)
        elif event.WhichOneof("payload") == "task":
            await run.apply(*found, record=event.task)
            found = []
    if found:
        await run.apply(*found)


def _event(frame: delivery_pb2.Frame) -> StreamResponse:
    try:
        return StreamResponse.FromString(frame.stream_response)
    except DecodeError as exc:
        raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent sent no valid event") from exc


def _initial(sending: Sending, event: StreamResponse) -> Task:
    """Return the task that a first event makes."""
    task = Task()
    if event.WhichOneof("payload") == "task":
        task.CopyFrom(event.task)
    else:
        task.id, task.context_id = events.task_id_of(event), events.context_id_of(event)
        task.history.append(sending.request.message)
        events.fold(task, event)
    if not task.id or not task.context_id:
        raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent made a task without id or context")
    return task


__all__ = ["Runs", "Sending", "Started"]
