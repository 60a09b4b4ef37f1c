"""Method names of A2A and the operations behind them: one table for all bindings."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from a2a.types import (
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTasksRequest,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    TaskPushNotificationConfig,
)
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kars_a2a_gateway.cards.shelf import Shelf
from kars_a2a_gateway.errors import A2AError, Kind, invalid
from kars_a2a_gateway.operations.admission import Call
from kars_a2a_gateway.operations.pushes import Pushes
from kars_a2a_gateway.operations.reading import Reader
from kars_a2a_gateway.operations.sending import Sender
from kars_a2a_gateway.wire import negotiation
from kars_a2a_gateway.wire.reading import MessageBounds, check_request


@dataclass(frozen=True)
class Method:
    """One method: its request type, and whether it streams."""

    name: str
    request: type[Message]
    streams: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("SendMessage", SendMessageRequest),
        Method("SendStreamingMessage", SendMessageRequest, streams=True),
        Method("GetTask", GetTaskRequest),
        Method("ListTasks", ListTasksRequest),
        Method("CancelTask", CancelTaskRequest),
        Method("SubscribeToTask", SubscribeToTaskRequest, streams=True),
        Method("CreateTaskPushNotificationConfig", TaskPushNotificationConfig),
        Method("GetTaskPushNotificationConfig", GetTaskPushNotificationConfigRequest),
        Method("ListTaskPushNotificationConfigs", ListTaskPushNotificationConfigsRequest),
        Method("DeleteTaskPushNotificationConfig", DeleteTaskPushNotificationConfigRequest),
        Method("GetExtendedAgentCard", GetExtendedAgentCardRequest),
    )
}


class Dispatcher:
    """Checks a request and hands it to its operation."""

    def __init__(
        self, sender: Sender, reader: Reader, pushes: Pushes, shelf: Shelf, bounds: MessageBounds
    ) -> None:
        self.bounds = bounds
        self._shelf = shelf
        self._unary: dict[str, Callable[[Call, Any], Awaitable[Message]]] = {
            "SendMessage": sender.send,
            "GetTask": reader.get_task,
            "ListTasks": reader.list_tasks,
            "CancelTask": reader.cancel_task,
            "CreateTaskPushNotificationConfig": pushes.create,
            "GetTaskPushNotificationConfig": pushes.get,
            "ListTaskPushNotificationConfigs": pushes.list_all,
            "DeleteTaskPushNotificationConfig": self._deleting(pushes),
            "GetExtendedAgentCard": lambda call, _: reader.extended_card(call),
        }
        self._streams: dict[str, Callable[[Call, Any], AsyncGenerator[StreamResponse, None]]] = {
            "SendStreamingMessage": sender.stream,
            "SubscribeToTask": reader.subscribe,
        }

    async def unary(self, call: Call, method: Method, request: Message) -> Message:
        """Answer one request.

        Raises:
            A2AError: refused or failed.
        """
        await self._check(call, request)
        return await self._unary[method.name](call, request)

    async def stream(
        self, call: Call, method: Method, request: Message
    ) -> AsyncGenerator[StreamResponse, None]:
        """Answer with a stream.

        Raises:
            A2AError: with the first event, or later.
        """
        await self._check(call, request)
        async with contextlib.aclosing(self._streams[method.name](call, request)) as events:
            async for event in events:
                yield event

    async def _check(self, call: Call, request: Message) -> None:
        """Version, form and extensions, the same for all bindings."""
        negotiation.check_version(call.version)
        check_request(request, self.bounds)
        tenant = getattr(request, "tenant", "")
        if tenant and tenant != call.exposure.agent:
            raise invalid("the tenant is not the agent that was called", "tenant")
        card = (await self._shelf.public(call.exposure, call.table)).card
        call.active = negotiation.activated_extensions(call.extensions, card)

    @staticmethod
    def _deleting(pushes: Pushes) -> Callable[[Call, Any], Awaitable[Message]]:
        async def delete(call: Call, request: DeleteTaskPushNotificationConfigRequest) -> Message:
            await pushes.delete(call, request)
            return Empty()

        return delete


def find_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        A2AError: METHOD_NOT_FOUND.
    """
    method = METHODS.get(name)
    if method is None:
        raise A2AError(Kind.METHOD_NOT_FOUND, "A2A 1.0 has no such method")
    return method
