"""A router's door whose agent costs nothing: it answers each message with a finished task.

The sample agent needs milliseconds a message and leaves a gateway idle most of the time; an idle process pays
for each wake-up alone. Behind this door the gateway is the limit, and its cost can be seen.

    python -m tests.bench.a2a.light_door DIRECTORY
"""

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop
from a2a.types import (
    Artifact,
    Part,
    SendMessageRequest,
    StreamResponse,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf.timestamp_pb2 import Timestamp
from kars.a2a.v1 import delivery_pb2, delivery_pb2_grpc
from kars_a2a_gateway_testkit.sample_agent import sample_card
from kars_common import files
from kars_common.identity import FileSvidSource
from kars_common.rpc import AuthorizationTable, RpcServer, ServerLimits
from kars_router.api.a2a import RULES

_LIMITS = ServerLimits(max_concurrent_streams=8192, max_concurrent_rpcs=16384)
_EVENT, _RECORD = delivery_pb2.FRAME_KIND_EVENT, delivery_pb2.FRAME_KIND_SNAPSHOT


class LightDoor(delivery_pb2_grpc.AgentDeliveryServicer):
    """Says what the sample agent says to `echo`, at once."""

    async def Call(self, request: Any, context: Any) -> delivery_pb2.CallResponse:  # noqa: N802
        """Return the sample agent's card."""
        return delivery_pb2.CallResponse(response=sample_card("http://127.0.0.1/").SerializeToString())

    async def Run(self, request: Any, context: Any) -> AsyncIterator[delivery_pb2.RunResponse]:  # noqa: N802
        """Make a task, work, answer, complete."""
        sent = SendMessageRequest.FromString(request.send_message).message
        now = Timestamp()
        now.GetCurrentTime()
        task = Task(id=str(uuid.uuid4()), context_id=sent.context_id or str(uuid.uuid4()), history=[sent])
        task.status.state = TaskState.TASK_STATE_SUBMITTED
        yield delivery_pb2.RunResponse(frames=[_frame(_EVENT, StreamResponse(task=task))])
        artifact = Artifact(artifact_id=str(uuid.uuid4()), name="answer", parts=[Part(text="hello")])
        working = TaskStatus(state=TaskState.TASK_STATE_WORKING, timestamp=now)
        completed = TaskStatus(state=TaskState.TASK_STATE_COMPLETED, timestamp=now)
        names: dict[str, Any] = {"task_id": task.id, "context_id": task.context_id}
        task.status.CopyFrom(completed)
        task.artifacts.append(artifact)
        found = [
            _frame(_EVENT, StreamResponse(status_update=TaskStatusUpdateEvent(status=working, **names))),
            _frame(
                _EVENT, StreamResponse(artifact_update=TaskArtifactUpdateEvent(artifact=artifact, **names))
            ),
            _frame(_EVENT, StreamResponse(status_update=TaskStatusUpdateEvent(status=completed, **names))),
            _frame(_RECORD, StreamResponse(task=task)),
        ]
        yield delivery_pb2.RunResponse(frames=found)


def _frame(kind: Any, event: StreamResponse) -> delivery_pb2.Frame:
    return delivery_pb2.Frame(kind=kind, stream_response=event.SerializeToString())


async def main(directory: Path) -> None:
    """Serve until SIGTERM."""
    source = FileSvidSource(directory / "svid")
    door = RpcServer(source, AuthorizationTable(RULES), "127.0.0.1:0", limits=_LIMITS)
    door.add(delivery_pb2_grpc.add_AgentDeliveryServicer_to_server, LightDoor())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    files.replace(directory / "ports.json", json.dumps({"door": await door.start(), "agent": 0}).encode())
    await stop.wait()
    await door.stop(0.1)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1])))
