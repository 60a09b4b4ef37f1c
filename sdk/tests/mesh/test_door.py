"""The router's door and a gRPC relay, served for real; what is behind them is the relay in memory."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from kars.mesh.v1 import identity_pb2, registry_pb2, registry_pb2_grpc, relay_pb2, relay_pb2_grpc
from kars.mesh.v1.identity_pb2_grpc import MeshIdentityServicer, add_MeshIdentityServicer_to_server
from kars_sdk.mesh.client import MeshClient
from kars_sdk.mesh.direct import Direct
from kars_sdk.mesh.directory import Directory
from kars_sdk.mesh.door import Door
from kars_sdk.mesh.door import _frames as frames_of
from kars_sdk.mesh.errors import TransportError
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.testing import OPEN, Authority, name
from kars_sdk.mesh.testing_mesh import MemoryMesh, RouterDoor, outgoing
from kars_sdk.mesh.transport import Registry, Transport
from kars_sdk.mesh.trust import TrustPolicy
from kars_sdk.mesh.upkeep import Membership

ALICE, BOB = name("alice"), name("bob")
KEY = bytes(range(32))
WAIT = 10
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(mesh: MemoryMesh, peer: PeerName) -> AsyncIterator[tuple[RouterDoor, Door]]:
    app = RouterDoor(mesh, peer)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]), name="test-door")
        door = Door(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield app, door
        finally:
            await door.close()
            server.should_exit = True
            await task


@contextlib.asynccontextmanager
async def client(
    mesh: MemoryMesh, peer: PeerName, transport: Transport, registry: Registry, folder: Path,
    policy: Callable[[], Awaitable[TrustPolicy]],
) -> AsyncIterator[MeshClient]:  # fmt: skip
    store = Store(folder / peer.rpartition("/")[2], KEY)
    try:
        membership = Membership(
            name=peer,
            store=store,
            directory=Directory(registry),
            trust=lambda: mesh.authority.trust,
            policy=policy,
        )
        async with MeshClient(membership, transport, min_backoff_s=0.02) as running:
            await running.attached(WAIT)
            yield running
    finally:
        store.close()


async def anybody() -> TrustPolicy:
    return OPEN


async def test_two_agents_talk_through_their_doors(authority: Authority, tmp_path: Path) -> None:
    mesh = MemoryMesh(authority)
    async with served(mesh, ALICE) as (app, door), served(mesh, BOB) as (_, other):

        async def policy() -> TrustPolicy:
            return TrustPolicy.from_json(await other.policy())

        async with (
            client(mesh, ALICE, door, door, tmp_path, anybody) as alice,
            client(mesh, BOB, other, other, tmp_path, policy) as bob,
        ):
            sent = await alice.send(BOB, "text", b"through two doors" * 1000)
            await sent.delivered(WAIT)
            message = await bob.receive(timeout_s=WAIT)
            assert message is not None
            assert message.body == b"through two doors" * 1000
            mesh.cut(ALICE)  # the router connects again by itself: a new hello in the same stream
            await (await alice.send(BOB, "text", b"again")).delivered(WAIT)
            mesh.forbidden.add((ALICE, BOB))
            with pytest.raises(TransportError) as refused:
                await (await alice.send(BOB, "text", b"forbidden")).delivered(WAIT)
            assert refused.value.reason == "edge_forbidden"
            assert app.connect is not None


async def test_a_door_that_ends_for_good_says_why(authority: Authority, tmp_path: Path) -> None:
    mesh = MemoryMesh(authority)
    async with served(mesh, ALICE) as (_, door), client(mesh, ALICE, door, door, tmp_path, anybody) as alice:
        mesh.cut(ALICE, "peer_replaced", fatal=True)
        with pytest.raises(TransportError) as ended:
            await alice.receive(timeout_s=1)
        assert ended.value.reason == "peer_replaced"


async def test_errors_of_the_door_keep_their_reason(authority: Authority) -> None:
    mesh = MemoryMesh(authority)
    async with served(mesh, ALICE) as (_, door):
        with pytest.raises(TransportError) as refused:
            await Directory(door).take_bundle(BOB)
        assert refused.value.reason == "peer_not_found"
    with pytest.raises(TransportError) as away:
        await Directory(Door("http://127.0.0.1:9")).counts()
    assert away.value.reason == "door_unreachable"


# The servicer's methods are named by the contract.
# ruff: noqa: N802


class GrpcMesh(relay_pb2_grpc.RelayServicer, registry_pb2_grpc.RegistryServicer, MeshIdentityServicer):
    """The contract on gRPC for one peer; method by method the memory's."""

    def __init__(self, mesh: MemoryMesh, peer: PeerName) -> None:
        self.endpoint = mesh.endpoint(peer)

    async def IssueStatement(
        self, request: identity_pb2.IssueStatementRequest, context: object
    ) -> identity_pb2.IssueStatementResponse:
        return await self.endpoint.issue_statement(request)

    async def Attach(
        self, requests: AsyncIterator[relay_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[relay_pb2.AttachResponse]:
        hello = relay_pb2.Hello(nonce=b"m" * 32, relay="spiffe://kars.test/svc/relay")
        yield relay_pb2.AttachResponse(hello=hello)
        first = await anext(aiter(requests))
        async with self.endpoint.attach_with(hello, lambda _: first.connect) as link:
            yield relay_pb2.AttachResponse(welcome=link.welcome)
            out: asyncio.Queue[relay_pb2.AttachResponse | None] = asyncio.Queue()

            async def incoming() -> None:
                number = 0
                async for request in requests:
                    batch = outgoing(list(request.submissions))
                    if batch:
                        refused = await link.submit(batch)
                        receipt = relay_pb2.Receipt(decided_through=number + len(batch))
                        for each in refused:
                            receipt.refusals.append(
                                relay_pb2.Refusal(
                                    number=number + each.index + 1,
                                    count=1,
                                    reason=relay_pb2.REFUSAL_REASON_EDGE_FORBIDDEN,
                                )
                            )
                        number += len(batch)
                        await out.put(relay_pb2.AttachResponse(receipt=receipt))
                    if request.ack_through:
                        await link.ack(request.ack_through)

            async def deliveries() -> None:
                with contextlib.suppress(TransportError):
                    async for frame in link.frames():
                        await out.put(frame)
                await out.put(None)

            tasks = [asyncio.create_task(each(), name="test-grpc") for each in (incoming, deliveries)]
            try:
                while (response := await out.get()) is not None:
                    yield response
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the test cut it")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


def _forward(method: str) -> Callable[..., Awaitable[Any]]:
    async def forward(self: GrpcMesh, request: Any, context: Any) -> Any:
        try:
            return await self.endpoint.call(method, request, getattr(registry_pb2, f"{method}Response"))
        except TransportError as exc:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(exc))

    return forward


for _method in (
    "Register", "PublishPrekeys", "TakePrekeys", "GetPrekeyCounts", "Lookup", "Discover", "GetTreeHead",
    "GetInclusionProof", "GetConsistencyProof",
):  # fmt: skip
    setattr(GrpcMesh, _method, _forward(_method))


async def test_two_agents_talk_over_grpc(authority: Authority, tmp_path: Path) -> None:
    mesh = MemoryMesh(authority)
    servers, directs = [], []
    for peer in (ALICE, BOB):
        server = grpc.aio.server()
        servicer = GrpcMesh(mesh, peer)  # type: ignore[abstract]  # its methods are set in a loop above
        relay_pb2_grpc.add_RelayServicer_to_server(servicer, server)
        registry_pb2_grpc.add_RegistryServicer_to_server(servicer, server)
        add_MeshIdentityServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)

        def channel(port: int = port) -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(
                f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
            )

        shared = channel()
        directs.append((Direct(channel, registry=shared, controller=shared), shared))
    try:
        async with (
            client(mesh, ALICE, directs[0][0], directs[0][0], tmp_path, anybody) as alice,
            client(mesh, BOB, directs[1][0], directs[1][0], tmp_path, anybody) as bob,
        ):
            for number in range(20):
                await alice.send(BOB, "text", b"%d" % number)
            received = [await bob.receive(timeout_s=WAIT) for _ in range(20)]
            assert [each and each.text for each in received] == [str(number) for number in range(20)]
            mesh.cut(ALICE)
            await (await alice.send(BOB, "text", b"again")).delivered(WAIT)
            mesh.forbidden.add((ALICE, BOB))
            with pytest.raises(TransportError) as refused:
                await (await alice.send(BOB, "text", b"forbidden")).delivered(WAIT)
            assert refused.value.reason == "edge_forbidden"
    finally:
        for _, shared in directs:
            await shared.close()
        for server in servers:
            await server.stop(None)


async def chunks(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@given(st.lists(st.binary(max_size=200), max_size=6), st.booleans())
async def test_a_stream_of_any_bytes_is_frames_or_an_error(parts: list[bytes], honest: bool) -> None:
    if honest:
        parts = [len(part).to_bytes(4, "big") + part for part in parts]
    with contextlib.suppress(TransportError):
        async for frame in frames_of(chunks(parts)):
            assert isinstance(frame, relay_pb2.AttachResponse)


async def test_a_frame_that_announces_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(TransportError) as refused:
        async for _ in frames_of(chunks([b"\xff\xff\xff\xff"])):
            pass
    assert refused.value.reason == "frame_too_large"
