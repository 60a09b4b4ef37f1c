"""SendMessage and SendStreamingMessage: checks, idempotency, then a task that the gateway follows.

What the caller asked of the transport (blocking or not, pushes, history) is answered here; the agent gets the
message and nothing that only concerns the way back.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from a2a.types import (
    Message,
    SendMessageRequest,
    SendMessageResponse,
    StreamResponse,
)

from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.cards.shelf import Shelf
from kars_a2a_gateway.errors import A2AError, Kind, invalid, task_not_found
from kars_a2a_gateway.inside.delivery import envelope
from kars_a2a_gateway.limits.streams import StreamSlots
from kars_a2a_gateway.operations import skills
from kars_a2a_gateway.operations.admission import Call
from kars_a2a_gateway.operations.pushes import Pushes
from kars_a2a_gateway.payments import ledger, mandates
from kars_a2a_gateway.payments.mandates import Payment
from kars_a2a_gateway.storage.scripts import Database, Script
from kars_a2a_gateway.tasks import index
from kars_a2a_gateway.tasks.history import shortened
from kars_a2a_gateway.tasks.index import Context, Sent, TaskRow
from kars_a2a_gateway.tasks.runs import Runs, Sending, Started


class Sender:
    """Sends messages of callers."""

    def __init__(
        self,
        database: Database,
        runs: Runs,
        shelf: Shelf,
        pushes: Pushes,
        *,
        recorder: Recorder,
        slots: StreamSlots,
        blocking_timeout_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._runs = runs
        self._shelf = shelf
        self._pushes = pushes
        self._recorder = recorder
        self._slots = slots
        self._blocking_timeout_s = blocking_timeout_s
        self._now_ms = now_ms

    async def send(self, call: Call, request: SendMessageRequest) -> SendMessageResponse:
        """Send a message and return its task, or the agent's message.

        Raises:
            A2AError: refused, here or by the agent.
        """
        prepared = await self._prepare(call, request, listen=False)
        if isinstance(prepared, SendMessageResponse):
            return prepared
        sending, seq = prepared
        started = await self._runs.send(sending)
        await self._recorder.durable(seq)
        if started.message is not None:
            return SendMessageResponse(message=started.message)
        run = started.run
        if run is None:
            raise A2AError(Kind.INTERNAL_ERROR, "a message became nothing")
        if not request.configuration.return_immediately:
            try:
                async with asyncio.timeout(self._blocking_timeout_s):
                    await run.wait_rest()
            except TimeoutError:
                pass  # the caller gets the task as it is; it goes on
            await run.settled()
        return SendMessageResponse(task=shortened(run.seen_by_caller(), request.configuration))

    async def stream(self, call: Call, request: SendMessageRequest) -> AsyncGenerator[StreamResponse, None]:
        """Send a message and yield what happens.

        Raises:
            A2AError: before the first event: refused; later: the stream broke.
        """
        card = (await self._shelf.public(call.exposure, call.table)).card
        if not card.capabilities.streaming:
            raise A2AError(Kind.UNSUPPORTED_OPERATION, "this agent does not stream")
        with self._slots.hold(call.owner, call.exposure.limits.max_streams):
            prepared = await self._prepare(call, request, listen=True)
            if isinstance(prepared, SendMessageResponse):
                yield _as_event(prepared)
                return
            sending, seq = prepared
            started = await self._runs.send(sending)
            await self._recorder.durable(seq)
            if started.message is not None:
                yield StreamResponse(message=started.message)
                return
            async for event in _listen(started, call.exposure.limits.max_stream_s):
                if event.WhichOneof("payload") == "task" and request.configuration.HasField("history_length"):
                    yield StreamResponse(task=shortened(event.task, request.configuration))
                else:
                    yield event

    async def _prepare(
        self, call: Call, request: SendMessageRequest, *, listen: bool
    ) -> SendMessageResponse | tuple[Sending, int]:
        card = (await self._shelf.public(call.exposure, call.table)).card
        skill = skills.check_skill(request, card, call.exposure, call.principal)
        push = None
        if request.configuration.HasField("task_push_notification_config"):
            push = self._pushes.checked(call, request.configuration.task_push_notification_config)
        payment = mandates.judge(request, call.exposure.payments, call.principal.id, self._now_ms() / 1000)
        inward = _inward(request)
        # Callers without a name cannot be told apart, so none may be given what another sent.
        remember = call.principal.proven
        request_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        found = await self._database.run(
            lambda: self._look_up(call, request.message, request_hash, payment, remember=remember),
            durable=payment is not None,
        )
        if isinstance(found, Sent):
            return await self._again(call, found, request)
        if payment is not None:
            fields = {
                "call": call.id,
                "agent": call.owner.agent,
                "principal": call.principal.id,
                "mandate": payment.mandate,
                "counterparty": payment.counterparty,
                "amount": payment.amount,
                "currency": payment.currency,
            }
            self._recorder.event("payment_accepted", fields)
        context = found.context
        inward.message.context_id = context.inner
        seq = self._recorder.call(
            call.id,
            call.owner,
            call.principal,
            "SendStreamingMessage" if listen else "SendMessage",
            {
                "task": request.message.task_id,
                "skill": skill,
                "payload_sha256": hashlib.sha256(request.message.SerializeToString()).hexdigest(),
                "peer": call.peer,
            },
        )
        principal = replace(call.principal, skills=skills.usable(card, call.exposure, call.principal))
        sending = Sending(
            exposure=call.exposure,
            owner=call.owner,
            envelope=envelope(call.exposure, principal, call.id, call.active, call.traceparent),
            request=inward,
            context=context,
            message_id=request.message.message_id,
            remember=remember,
            push_config=push.SerializeToString() if push is not None else None,
            listen=listen,
        )
        return sending, seq

    def _look_up(
        self,
        call: Call,
        message: Message,
        request_hash: bytes,
        payment: Payment | None,
        *,
        remember: bool,
    ) -> Script["Sent | _Found"]:
        """Settle everything that the index has to say about a message, in one transaction."""
        owner = call.owner
        references = tuple(message.reference_task_ids)
        if references and not (yield from index.owned(owner, references)):
            raise task_not_found()
        row = None
        if message.task_id:
            row = yield from index.find(owner, message.task_id)
            if row is None:
                raise task_not_found()
        context = _context_of(row, message)
        if row is None:
            if (yield from index.open_tasks(owner)) >= call.exposure.limits.max_open_tasks:
                raise A2AError(
                    Kind.QUOTA_EXCEEDED,
                    "too many tasks of this caller are open",
                    headers=(("retry-after", "30"),),
                )
            if message.context_id:
                context = yield from index.resolve_context(owner, message.context_id)
        if remember:
            sent = yield from index.begin_message(owner, message.message_id, request_hash, self._now_ms())
            if sent is not None:
                return sent
        if row is not None and row.ended:
            raise A2AError(Kind.UNSUPPORTED_OPERATION, "the task has ended; send a message without its id")
        if payment is not None:
            # After the look for a repeated message, and in the same transaction: once, or not at all.
            yield from ledger.spend(payment, self._now_ms())
        return _Found(context)

    async def _again(self, call: Call, sent: Sent, request: SendMessageRequest) -> SendMessageResponse:
        """Answer a message that was sent before with what became of it."""
        if sent.reply is not None:
            return SendMessageResponse(message=Message.FromString(sent.reply))
        row = (
            await self._database.run(lambda: index.find(call.owner, sent.task_id), durable=False)
            if sent.task_id
            else None
        )
        if row is None:
            raise A2AError(
                Kind.UNAVAILABLE,
                "this very message is being sent; ask for its task later",
                headers=(("retry-after", "2"),),
            )
        run = self._runs.get(call.owner.agent, row.task_id)
        if run is not None and not request.configuration.return_immediately:
            try:
                async with asyncio.timeout(self._blocking_timeout_s):
                    await run.wait_rest()
            except TimeoutError:
                pass  # as above: the task as it is
        task = run.seen_by_caller() if run is not None else row.task()
        return SendMessageResponse(task=shortened(task, request.configuration))


class _Found:
    """What a message belongs to."""

    def __init__(self, context: Context) -> None:
        self.context = context


async def _listen(started: Started, max_stream_s: float) -> AsyncGenerator[StreamResponse, None]:
    run, subscription = started.run, started.subscription
    if run is None or subscription is None:
        raise A2AError(Kind.INTERNAL_ERROR, "nobody listens to this stream")
    try:
        async for event in subscription.events(max_stream_s):
            yield event
    finally:
        run.unsubscribe(subscription)


def _context_of(row: TaskRow | None, message: Message) -> Context:
    if row is None:
        return Context()
    if message.context_id and message.context_id != row.outer_context:
        raise invalid("the context is not that of the task", "message.contextId")
    return Context(outer=row.outer_context, inner=row.inner_context)


def _inward(request: SendMessageRequest) -> SendMessageRequest:
    """Return what the agent gets: the message, and which kinds of output are accepted."""
    inward = SendMessageRequest()
    inward.message.CopyFrom(request.message)
    if request.metadata.fields:
        inward.metadata.CopyFrom(request.metadata)
    inward.configuration.accepted_output_modes.extend(request.configuration.accepted_output_modes)
    return inward


def _as_event(response: SendMessageResponse) -> StreamResponse:
    if response.HasField("task"):
        return StreamResponse(task=response.task)
    return StreamResponse(message=response.message)
