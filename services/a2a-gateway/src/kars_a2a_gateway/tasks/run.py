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
            if states.ended(self.task):
                subscription.put(None)
        if states.rests(self.task):
            self._settled.clear()
            self._wake()

    async def apply(self, event: StreamResponse, raw: bytes) -> None:
        """Check, fold, store and show one event. The same bytes from two sources count once.

        Raises:
            A2AError: INVALID_AGENT_RESPONSE; nothing was changed.
            UnavailableError: it cannot be stored; nothing was shown.
        """
        async with self._lock:
            if self.sources > 1 and raw in self._recent:
                return
            self._recent.append(raw)
            events.check_belongs(event, self.task_id, self.context.inner)
            if states.ended(self.task):
                return  # an agent that goes on after the end is not listened to
            self._hold_on(event)
            if event.WhichOneof("payload") == "task" and same(event.task, self.task):
                return  # a source that begins with what is known
            before = self.task.status.state
            folded = Task()
            folded.CopyFrom(self.task)
            events.fold(folded, event)
            if self.stores_every_event or folded.status.state != before or states.rests(folded):
                await self._store(folded, event)
            self.task = folded
            self._announce(event)
            if states.ended(folded):
                self._recorder.task("ended", self.owner, self.task_id, {"state": state_name(folded)})

    async def replace(self, task: Task) -> None:
        """Take the agent's own record of the task for the store; nobody is shown it.

        Raises:
            A2AError: INVALID_AGENT_RESPONSE.
        """
        async with self._lock:
            probe = StreamResponse()
            probe.task.CopyFrom(task)
            events.check_belongs(probe, self.task_id, self.context.inner)
            self._hold_on(probe)
            self._settled.set()
            # What ended, stays as it ended; a record that is behind what was streamed is no news.
            if probe.task.status.state != self.task.status.state or same(probe.task, self.task):
                return
            self.task = probe.task
            await self._database.run(
                lambda: index.update(self.owner.agent, self.task, self.updated_ns(self.task))
            )

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

    async def _store(self, task: Task, event: StreamResponse) -> None:
        payload, updated_ns = self.payload_of(event), self.updated_ns(task)

        def script() -> Script[bool]:
            yield from index.update(self.owner.agent, task, updated_ns)
            return (
                yield from outbox.enqueue(self.owner.agent, task.id, (payload,), self._now_ns() // 1_000_000)
            )

        if await self._database.run(script):
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


def same(one: Task, other: Task) -> bool:
    """Tell whether two tasks are equal in every field."""
    return one == other


def state_name(task: Task) -> str:
    """Return `completed`, `input_required`, ..."""
    return TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower()
