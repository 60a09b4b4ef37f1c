"""Delivery to an agent's own A2A server: the official SDK's, on loopback; and servers that misbehave."""

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
import uvicorn
from a2a.types import GetTaskRequest, Message, Part, Role, SendMessageRequest, StreamResponse, TaskState
from kars.a2a.v1 import delivery_pb2, delivery_pb2_grpc
from kars.a2a.v1 import policy_pb2 as a2a_policy_pb2
from kars_a2a_gateway_testkit.sample_agent import sample_app
from kars_common.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidInputError,
    KarsError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from kars_common.rpc import AuthorizationTable, PeerChannel, RpcServer, mapped_errors
from kars_common.testing import MemoryAuthority, StaticSvidSource
from kars_router.a2a.agent import AgentServer
from kars_router.a2a.delivery import Deliveries, Frame
from kars_router.a2a.gathering import gathered
from kars_router.api.a2a import RULES, AgentDeliveryServicer


class Agent:
    """A server on loopback, in this loop."""

    def __init__(self, app: Any = None, **sample: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        app = app or sample_app(self.url, **sample)
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", loop="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        async with asyncio.timeout(10):
            while not self._server.started:
                await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        await self._task


@pytest.fixture
async def deliveries() -> AsyncIterator[Deliveries]:
    async with Agent() as agent:
        server = AgentServer(agent.url, wake_timeout_s=2)
        yield Deliveries(server)
        await server.close()


def message(text: str) -> SendMessageRequest:
    return SendMessageRequest(
        message=Message(message_id=str(uuid.uuid4()), role=Role.ROLE_USER, parts=[Part(text=text)])
    )


async def run(deliveries: Deliveries, text: str) -> list[Frame]:
    async with asyncio.timeout(10):
        return [frame async for frame in deliveries.send(message(text), ())]


async def test_a_run_has_every_event_and_ends_with_the_agents_record(deliveries: Deliveries) -> None:
    frames = await run(deliveries, "stream 3")

    assert [frame.event.WhichOneof("payload") for frame in frames] == [
        "task",
        "status_update",
        *["artifact_update"] * 3,
        "status_update",
        "task",
    ]
    assert [frame.snapshot for frame in frames] == [False] * 6 + [True]
    assert len(frames[-1].event.task.artifacts[0].parts) == 3


async def test_an_agent_that_does_not_stream_is_asked_until_its_task_rests() -> None:
    async with Agent(streaming=False) as agent:
        server = AgentServer(agent.url)
        frames = await run(Deliveries(server), "slow 0.3")
        await server.close()
    states = [frame.event.task.status.state for frame in frames]
    assert states[-1] == TaskState.TASK_STATE_COMPLETED
    assert len(states) > 1


async def test_errors_have_reasons_and_none_of_the_agents_text(deliveries: Deliveries) -> None:
    with pytest.raises(NotFoundError) as refusal:
        await deliveries.get_task(GetTaskRequest(id="nobody"), ())
    assert refusal.value.reason == "a2a_task_not_found"
    finished = (await run(deliveries, "echo"))[0].event.task.id
    with pytest.raises(KarsError) as ended:
        [frame async for frame in deliveries.follow(finished)]
    assert ended.value.reason == "a2a_unsupported_operation"


def answering(status: int, body: bytes, media_type: str = "application/json") -> Any:
    """An application whose card is good and whose every other answer is this one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("agent-card.json"):
            from google.protobuf import json_format
            from kars_a2a_gateway_testkit.sample_agent import sample_card

            answer, kind, code = (
                json.dumps(json_format.MessageToDict(sample_card("http://evil.example/"))),
                JSON,
                200,
            )
        else:
            answer, kind, code = body.decode("latin-1"), media_type, status
        headers = [(b"content-type", kind.encode()), (b"location", b"http://127.0.0.1:1/")]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": answer.encode("latin-1")})

    return app


JSON = "application/json"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"not json"),
        (200, b"{}"),
        (200, b'{"jsonrpc":"2.0","id":1,"result":{"id":7}}'),
        (200, b'{"jsonrpc":"2.0","id":1,"result":' + b'{"metadata":{"a":' * 300 + b"1" + b"}}" * 300 + b"}"),
        (500, b"Traceback: secret-in-a-stack-trace"),
        (302, b""),
        (200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"secret-in-a-stack-trace"}}'),
    ],
)
async def test_servers_that_misbehave_are_errors_without_their_text(status: int, body: bytes) -> None:
    async with Agent(answering(status, body)) as agent:
        server = AgentServer(agent.url)
        with pytest.raises((InternalError, UnavailableError)) as failure:
            await Deliveries(server).get_task(GetTaskRequest(id="x"), ())
        await server.close()
    assert "secret" not in str(failure.value)


async def test_only_loopback_is_dialled_whatever_the_card_says() -> None:
    """The card above names another host; the request arrived here all the same."""
    task = {"id": "t", "contextId": "c", "status": {"state": "TASK_STATE_WORKING"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": task}).encode()
    async with Agent(answering(200, body)) as agent:
        server = AgentServer(agent.url)
        assert (await Deliveries(server).get_task(GetTaskRequest(id="x"), ())).id == "t"
        await server.close()


async def test_register_33_an_agent_that_is_asleep_is_waited_for() -> None:
    probe = socket.create_server(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    server = AgentServer(f"http://127.0.0.1:{port}", wake_timeout_s=0.5)
    with pytest.raises(UnavailableError):
        await server.card()
    patient = AgentServer(f"http://127.0.0.1:{port}", wake_timeout_s=10)
    asking = asyncio.create_task(patient.card())
    agent = Agent()
    agent._socket.close()
    agent._socket = socket.create_server(("127.0.0.1", port))
    async with agent:
        assert (await asyncio.wait_for(asking, 10)).name == "Sample agent"
        await patient.close()
    await server.close()


async def test_gathering_keeps_order_and_holds_neither_first_nor_last_back() -> None:
    release = asyncio.Event()

    async def frames() -> AsyncIterator[Frame]:
        for number in range(5):
            yield Frame(StreamResponse(message=Message(message_id=str(number))))
        yield Frame(StreamResponse(message=Message(message_id="record")), snapshot=True)
        await release.wait()
        yield Frame(StreamResponse(message=Message(message_id="later")))
        raise NotFoundError("a2a_task_not_found", "gone")

    batches = []

    async def read() -> None:
        async for batch in gathered(frames(), 5.0):
            batches.append([frame.event.message.message_id for frame in batch])
            if batch[-1].snapshot:
                release.set()

    with pytest.raises(NotFoundError):
        await read()
    assert batches == [["0"], ["1", "2", "3", "4", "record"], ["later"]]


async def test_only_the_gateway_may_deliver(deliveries: Deliveries) -> None:
    authority = MemoryAuthority()
    source = StaticSvidSource(authority.sandbox("team", "writer"))
    server = RpcServer(source, AuthorizationTable(RULES), "127.0.0.1:0")
    servicer = AgentDeliveryServicer(("team", "writer"), deliveries)
    server.add(delivery_pb2_grpc.add_AgentDeliveryServicer_to_server, servicer)
    assert server.ungoverned() == (frozenset(), frozenset())
    port = await server.start()

    async def call(svid: Any, name: str = "writer") -> delivery_pb2.CallResponse:
        channel = PeerChannel(StaticSvidSource(svid), f"127.0.0.1:{port}", "writer.team.sandbox.kars.local")
        stub: Any = channel.stub(delivery_pb2_grpc.AgentDeliveryStub)
        agent = a2a_policy_pb2.AgentRef(namespace="team", name=name)
        request = delivery_pb2.CallRequest(
            envelope=delivery_pb2.Envelope(agent=agent), method=delivery_pb2.CALL_METHOD_GET_CARD
        )
        try:
            with mapped_errors():
                answer: delivery_pb2.CallResponse = await stub.Call(request)
                return answer
        finally:
            await channel.close()

    assert (await call(authority.service("a2a-gateway"))).response
    for other in (authority.service("relay"), authority.sandbox("team", "writer"), authority.operator("ann")):
        with pytest.raises(PermissionDeniedError):
            await call(other)
    with pytest.raises(InvalidInputError):
        await call(authority.service("a2a-gateway"), name="other")
    await server.stop(0)


async def test_an_agent_that_hangs_is_given_up() -> None:
    hanging = socket.create_server(("127.0.0.1", 0))
    server = AgentServer(f"http://127.0.0.1:{hanging.getsockname()[1]}", wake_timeout_s=0, timeout_s=0.3)
    with pytest.raises((UnavailableError, DeadlineExceededError)):
        await Deliveries(server).card()
    await server.close()
    hanging.close()
