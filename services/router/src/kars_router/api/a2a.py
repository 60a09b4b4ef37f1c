"""The door for the A2A gateway: `kars.a2a.v1.AgentDelivery` over mTLS.

    server.add(delivery_pb2_grpc.add_AgentDeliveryServicer_to_server, AgentDeliveryServicer(door, deliveries))

with `RULES` in the authorization table. Decodes, delivers, encodes.
"""

from collections.abc import AsyncIterator
from typing import Any

from a2a.types import CancelTaskRequest, GetTaskRequest, SendMessageRequest
from google.protobuf.message import DecodeError
from kars.a2a.v1 import delivery_pb2, delivery_pb2_grpc
from kars_common.errors import InvalidInputError

from kars_router.a2a.delivery import Deliveries, Frame, check_envelope
from kars_router.a2a.gathering import gathered

_MAX_GATHER_MS = 100

RULES = {
    "kars.a2a.v1.AgentDelivery/Call": ["svc/a2a-gateway"],
    "kars.a2a.v1.AgentDelivery/Run": ["svc/a2a-gateway"],
}
"""Who may call: the gateway, which has proven its callers, and nobody else."""


class AgentDeliveryServicer(delivery_pb2_grpc.AgentDeliveryServicer):
    """Serves one agent."""

    def __init__(self, agent: tuple[str, str], deliveries: Deliveries) -> None:
        """Build.

        Args:
            agent: namespace and name of the sandbox behind this router.
            deliveries: the way to its A2A server.
        """
        self._agent = agent
        self._deliveries = deliveries

    async def Call(  # noqa: N802 - named by the contract
        self,
        request: delivery_pb2.CallRequest,
        context: Any,  # noqa: ANN401, ARG002 - grpc's
    ) -> delivery_pb2.CallResponse:
        """Ask the agent for one answer."""
        self._check(request.envelope)
        extensions = tuple(request.envelope.extensions)
        try:
            match request.method:
                case delivery_pb2.CALL_METHOD_GET_TASK:
                    task = await self._deliveries.get_task(
                        GetTaskRequest.FromString(request.request), extensions
                    )
                    answer = task.SerializeToString()
                case delivery_pb2.CALL_METHOD_CANCEL_TASK:
                    cancel = CancelTaskRequest.FromString(request.request)
                    answer = (await self._deliveries.cancel_task(cancel, extensions)).SerializeToString()
                case delivery_pb2.CALL_METHOD_GET_CARD:
                    answer = await self._deliveries.card()
                case delivery_pb2.CALL_METHOD_GET_EXTENDED_CARD:
                    answer = await self._deliveries.extended_card()
                case _:
                    raise InvalidInputError("method_unknown", "no such call")
        except DecodeError as exc:
            raise InvalidInputError("request_malformed", "the payload is not the method's request") from exc
        return delivery_pb2.CallResponse(response=answer)

    async def Run(  # noqa: N802 - named by the contract
        self,
        request: delivery_pb2.RunRequest,
        context: Any,  # noqa: ANN401, ARG002 - grpc's
    ) -> AsyncIterator[delivery_pb2.RunResponse]:
        """Send a message, or follow a task."""
        self._check(request.envelope)
        match request.WhichOneof("run"):
            case "send_message":
                try:
                    message = SendMessageRequest.FromString(request.send_message)
                except DecodeError as exc:
                    raise InvalidInputError("request_malformed", "the payload is not a message") from exc
                frames = self._deliveries.send(message, tuple(request.envelope.extensions))
            case "follow_task":
                frames = self._deliveries.follow(request.follow_task)
            case _:
                raise InvalidInputError("request_malformed", "a run sends a message or follows a task")
        gather_s = min(max(request.gather_ms, 0), _MAX_GATHER_MS) / 1000
        async for batch in gathered(frames, gather_s):
            yield delivery_pb2.RunResponse(frames=map(_written, batch))

    def _check(self, envelope: delivery_pb2.Envelope) -> None:
        check_envelope(envelope.agent.namespace, envelope.agent.name, self._agent)


def _written(frame: Frame) -> delivery_pb2.Frame:
    kind = delivery_pb2.FRAME_KIND_SNAPSHOT if frame.snapshot else delivery_pb2.FRAME_KIND_EVENT
    return delivery_pb2.Frame(kind=kind, stream_response=frame.event.SerializeToString())
