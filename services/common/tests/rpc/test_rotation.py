"""Certificates change while calls are open and new ones keep coming: none of them notices."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.errors import UnavailableError
from kars_common.rpc import (
    ANY_IDENTITY,
    AuthorizationTable,
    PeerChannel,
    RpcServer,
    ServerLimits,
    caller,
    from_rpc_error,
)
from kars_common.testing import MemoryAuthority, StaticSvidSource

SERVICE = "kars.policy.v1.PolicyDiscovery"
TABLE = AuthorizationTable({f"{SERVICE}/Watch": [ANY_IDENTITY], f"{SERVICE}/GetSigningKeys": [ANY_IDENTITY]})


class Servicer(policy_pb2_grpc.PolicyDiscoveryServicer):
    """Echoes a stream; notes which connection each unary call came by."""

    def __init__(self) -> None:
        self.peers: set[str] = set()

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for _ in request_iterator:
            yield policy_pb2.WatchResponse(bundle=policy_pb2.SignedBundle(key_id=str(caller(context))))

    async def GetSigningKeys(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.peers.add(context.peer())
        await asyncio.sleep(0.002)  # the work that calls overlap in
        return policy_pb2.GetSigningKeysResponse()


async def test_rotation_of_both_sides_under_load_drops_no_call() -> None:
    authority = MemoryAuthority()
    server_source = StaticSvidSource(authority.service("controller"))
    client_source = StaticSvidSource(authority.service("relay"))
    servicer = Servicer()
    server = RpcServer(server_source, TABLE, "127.0.0.1:0")
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, servicer)
    port = await server.start()
    channel = PeerChannel(client_source, f"127.0.0.1:{port}", "controller.svc.kars.local")
    stub: Any = channel.stub(policy_pb2_grpc.PolicyDiscoveryStub)
    stream = stub.Watch()
    await stream.write(policy_pb2.WatchRequest())
    assert (await stream.read()).bundle.key_id == "spiffe://kars.local/svc/relay"

    done, stop = 0, asyncio.Event()

    async def load() -> None:
        nonlocal done
        while not stop.is_set():
            await stub.GetSigningKeys(policy_pb2.GetSigningKeysRequest())
            done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(load())
        for _ in range(10):
            server_source.rotate(authority.service("controller"))
            client_source.rotate(authority.service("relay"))
            target = done + 50
            async with asyncio.timeout(10):
                while done < target:
                    await asyncio.sleep(0.005)
        stop.set()

    await stream.write(policy_pb2.WatchRequest())
    assert (await asyncio.wait_for(stream.read(), 5)).bundle.key_id  # the first connection lives on
    assert len(servicer.peers) >= 10  # and the load moved to a new one each time
    stream.cancel()
    await channel.close()
    await server.stop(1)


async def test_new_connections_see_the_servers_new_certificate() -> None:
    old, new = MemoryAuthority(), MemoryAuthority()
    both = old.trust_bundle_pem + new.trust_bundle_pem
    server_source = StaticSvidSource(_with_roots(old.service("controller"), both))
    server = RpcServer(server_source, TABLE, "127.0.0.1:0")
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, Servicer())
    port = await server.start()
    server_source.rotate(_with_roots(new.service("controller"), both))
    trusts_new_only = StaticSvidSource(new.service("relay"))
    channel = PeerChannel(trusts_new_only, f"127.0.0.1:{port}", "controller.svc.kars.local")
    stub: Any = channel.stub(policy_pb2_grpc.PolicyDiscoveryStub)
    await stub.GetSigningKeys(policy_pb2.GetSigningKeysRequest())
    await channel.close()
    await server.stop(0)


async def test_server_whose_svid_expired_answers_nobody_new() -> None:
    authority = MemoryAuthority()
    server_source = StaticSvidSource(authority.service("controller", lifetime=timedelta(seconds=2)))
    server = RpcServer(server_source, TABLE, "127.0.0.1:0")
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, Servicer())
    port = await server.start()
    async with asyncio.timeout(5):
        while _valid(server_source):
            await asyncio.sleep(0.05)
    channel = PeerChannel(
        StaticSvidSource(authority.service("relay")), f"127.0.0.1:{port}", "controller.svc.kars.local"
    )
    stub: Any = channel.stub(policy_pb2_grpc.PolicyDiscoveryStub)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetSigningKeys(policy_pb2.GetSigningKeysRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await channel.close()
    await server.stop(0)


async def test_stop_ends_open_streams_early_with_a_reason() -> None:
    authority = MemoryAuthority()
    server = RpcServer(
        StaticSvidSource(authority.service("controller")),
        TABLE,
        "127.0.0.1:0",
        limits=ServerLimits(stream_grace_s=0.05),
    )
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, Servicer())
    port = await server.start()
    channel = PeerChannel(
        StaticSvidSource(authority.service("relay")), f"127.0.0.1:{port}", "controller.svc.kars.local"
    )
    stub: Any = channel.stub(policy_pb2_grpc.PolicyDiscoveryStub)
    stream = stub.Watch()
    await stream.write(policy_pb2.WatchRequest())
    await stream.read()
    await asyncio.wait_for(server.stop(60), 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert from_rpc_error(caught.value).reason == "server_stopping"
    await channel.close()


async def test_open_connection_is_no_way_around_the_callers_expiry() -> None:
    authority = MemoryAuthority()
    server = RpcServer(StaticSvidSource(authority.service("controller")), TABLE, "127.0.0.1:0")
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, Servicer())
    port = await server.start()
    short = authority.service("relay", lifetime=timedelta(seconds=3))
    stubborn = StaticSvidSource(short)
    stubborn.current = lambda: short  # type: ignore[method-assign]  # a client that does not check itself
    channel = PeerChannel(stubborn, f"127.0.0.1:{port}", "controller.svc.kars.local")
    stub: Any = channel.stub(policy_pb2_grpc.PolicyDiscoveryStub)
    reason = ""
    async with asyncio.timeout(10):
        while not reason:
            try:
                await stub.GetSigningKeys(policy_pb2.GetSigningKeysRequest())
            except grpc.aio.AioRpcError as exc:
                reason = from_rpc_error(exc).reason
    assert reason == "peer_certificate_expired"
    await channel.close()
    await server.stop(0)


@pytest.mark.parametrize(
    "names", [[], ["spiffe://kars.local/svc/a", "spiffe://kars.local/svc/b"], ["https://x/y"]]
)
async def test_certificate_without_exactly_one_spiffe_id_is_refused(names: list[str]) -> None:
    authority = MemoryAuthority()
    server = RpcServer(StaticSvidSource(authority.service("controller")), TABLE, "127.0.0.1:0")
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, Servicer())
    port = await server.start()
    odd = authority.with_uris(names)
    credentials = grpc.ssl_channel_credentials(authority.trust_bundle_pem, *odd)
    options = [("grpc.ssl_target_name_override", "controller.svc.kars.local")]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        stub: Any = policy_pb2_grpc.PolicyDiscoveryStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSigningKeys(policy_pb2.GetSigningKeysRequest(), timeout=5)
    await server.stop(0)
    assert from_rpc_error(caught.value).reason == "peer_identity_invalid"


def _valid(source: StaticSvidSource) -> bool:
    try:
        source.current()
    except UnavailableError:
        return False
    return True


def _with_roots(svid: Any, roots: bytes) -> Any:
    import dataclasses

    return dataclasses.replace(svid, trust_bundle_pem=roots)
