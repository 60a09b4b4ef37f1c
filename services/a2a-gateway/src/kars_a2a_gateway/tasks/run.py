"""One task while something happens to it: its state in memory, and who listens.

Events are applied one at a time: checked, folded, stored together with their pushes, and only then shown to
anybody. Knows no connection; `tasks.runs` brings the events.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from a2a.types import StreamResponse, Task, TaskState

from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.push import outbox
from kars_a2a_gateway.storage.scripts import Database, Script
from kars_a2a_gateway.tasks import events, index, states
from kars_a2a_gateway.tasks.index import Context
from kars_a2a_gateway.tasks.owners import Owner
from kars_a2a_gateway.tasks.subscribers import Subscription

_SETTLE_S = 1.0


class Run:
    """A task that is being followed by this process."""

    def __init__(
        self,
        owner: Owner,
        task: Task,
        context: Context,
        database: Database,
        recorder: Recorder,
        *,
        now_ns: Callable[[], int],
        pushes_queued: Callable[[], None],
    ) -> None:
        self.owner = owner
        self.task = task
        self.context = context
        self.sources = 0
        self.stores_every_event = True
        self._database = database
        self._recorder = recorder
        self._now_ns = now_ns
        self._pushes_queued = pushes_queued
        self._lock = asyncio.Lock()
        self._subscriptions: list[Subscription] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._recent: deque[bytes] = deque(maxlen=128)
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def task_id(self) -> str:
        """The task."""
        return self.task.id

    def seen_by_caller(self) -> Task:
        """Return the task with the caller's name for its context."""
        return events.outer_task(self.task, self.context.inner, self.context.outer)

    def subscribe(self, *, with_task: bool) -> Subscription:
        """Listen from now on; `with_task` puts the task as it is now first."""
        subscription = Subscription()
        if with_task:
            first = StreamResponse()
            first.task.CopyFrom(self.seen_by_caller())
            subscription.put(first)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def wait_rest(self) -> None:
        """Wait until the task ends, is interrupted, or nothing more will be heard of it."""
        if not states.rests(self.task):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def settled(self) -> None:
        """Wait a moment for the agent's own record, which follows when a task comes to rest."""
        try:
            async with asyncio.timeout(_SETTLE_S):
                await self._settled.wait()
        except TimeoutError:
            return  # what was folded from its events says the same, less exactly

    def greet(self, subscription: Subscription, event: StreamResponse) -> None:
        """Show the event that a run began with to the first who listens."""
        subscription.put(events.rename_context(event, self.context.inner, self.context.outer))
        if states.ended(self.task):
            subscription.put(None)

    def begun(self) -> None:
        """Note that the first event is stored."""
        if states.rests(self.task):
            self._settled.clear()

    def _announce(self, event: StreamResponse) -> None:
        shown = events.rename_context(event, self.context.inner, self.context.outer)
        for subscription in self._subscriptions:
            subscription.put(shown)
            if ends(event):
                subscription.put(None)

    async def apply(self, *found: StreamResponse, record: Task | None = None) -> None:
        """Check, fold, store and show events. The same event from two sources counts once.

        Args:
            found: in the agent's order; stored together.
            record: the agent's own record of the task after them, which is stored and shown to nobody.

        Raises:
            A2AError: INVALID_AGENT_RESPONSE; nothing was changed.
            UnavailableError: it cannot be stored; nothing was shown.
        """
        async with self._lock:
            folded = Task()
            folded.CopyFrom(self.task)
            fresh = [event for event in found if self._fold(folded, event)]
            if record is not None:
                self._take_record(folded, record)
            if not fresh and folded == self.task:
                self._note_record(record)
                return
            stores = self.stores_every_event or folded.status.state != self.task.status.state
            if stores or record is not None or states.rests(folded):
                await self._store(folded, fresh)
            self.task = folded
            for event in fresh:
                self._announce(event)
            self._rested(record)
            if fresh and states.ended(folded):
                self._recorder.task("ended", self.owner, self.task_id, {"state": state_name(folded)})

    def _fold(self, task: Task, event: StreamResponse) -> bool:
        """Fold one event; tells whether it is news."""
        if self.sources > 1:
            raw = event.SerializeToString(deterministic=True)
            if raw in self._recent:
                return False
            self._recent.append(raw)
        events.check_belongs(event, self.task_id, self.context.inner)
        if states.ended(task):
            return False  # an agent that goes on after the end is not listened to
        self._hold_on(event)
        if event.WhichOneof("payload") == "task" and event.task == task:
            return False  # a source that begins with what is known
        events.fold(task, event)
        return True

    def _take_record(self, task: Task, record: Task) -> None:
        """Put the agent's record in the place of what was folded, unless it is behind."""
        probe = StreamResponse(task=record)
        events.check_belongs(probe, self.task_id, self.context.inner)
        self._hold_on(probe)
        # What ended, stays as it ended.
        if probe.task.status.state == task.status.state:
            task.CopyFrom(probe.task)

    def _rested(self, record: Task | None) -> None:
        if states.rests(self.task):
            self._settled.clear()
            self._wake()
        self._note_record(record)

    def _note_record(self, record: Task | None) -> None:
        if record is not None:
            self._settled.set()

    def finish(self) -> None:
        """End every stream; nothing more will come."""
        for subscription in self._subscriptions:
            subscription.put(None)
        self._subscriptions.clear()
        self._settled.set()
        self._wake()

    def updated_ns(self, task: Task) -> int:
        """Return when a task changed: the agent's own time, not later than now."""
        now_ns = self._now_ns()
        if not task.status.HasField("timestamp"):
            return now_ns
        return max(0, min(now_ns, task.status.timestamp.ToNanoseconds()))

    def payload_of(self, event: StreamResponse) -> bytes:
        """Return what a push of an event carries."""
        return events.rename_context(event, self.context.inner, self.context.outer).SerializeToString()

    async def _store(self, task: Task, fresh: list[StreamResponse]) -> None:
        payloads = [self.payload_of(event) for event in fresh]
        updated_ns, now_ms = self.updated_ns(task), self._now_ns() // 1_000_000

        def script() -> Script[bool]:
            yield from index.update(self.owner.agent, task, updated_ns)
            return (yield from outbox.enqueue(self.owner.agent, task.id, payloads, now_ms))

        # The agent can say all of it again, but pushes only leave from here.
        if await self._database.run(script, durable=self.stores_every_event):
            self._pushes_queued()

    def _hold_on(self, event: StreamResponse) -> None:
        """Fill in the context where an agent leaves it out."""
        kind = event.WhichOneof("payload")
        if kind is not None and kind != "message" and not getattr(event, kind).context_id:
            getattr(event, kind).context_id = self.context.inner

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def ends(event: StreamResponse) -> bool:
    """Tell whether a task ends with this event."""
    match event.WhichOneof("payload"):
        case "task":
            return event.task.status.state in states.TERMINAL
        case "status_update":
            return event.status_update.status.state in states.TERMINAL
    return False


def state_name(task: Task) -> str:
    """Return `completed`, `input_required`, ..."""
    return TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower()
