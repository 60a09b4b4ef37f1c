"""Retries: idempotent methods only, bounded, and not at all once most calls fail."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from kars.identity.v1 import identity_pb2, identity_pb2_grpc
from kars_common.errors import PermissionDeniedError, UnavailableError
from kars_common.rpc import ANY_IDENTITY, AuthorizationTable, PeerChannel, RpcServer, ServerLimits
from kars_common.testing import MemoryAuthority, StaticSvidSource

SERVICE = "kars.identity.v1.WorkloadIdentity"
TABLE = AuthorizationTable({f"{SERVICE}/GetTrustBundle": [ANY_IDENTITY], f"{SERVICE}/Renew": [ANY_IDENTITY]})


class Flaky(identity_pb2_grpc.WorkloadIdentityServicer):
    """Fails the next `failures` calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures: list[Exception] = []
        self.held = 0
        self.both_held = asyncio.Event()
        self.let_go = asyncio.Event()

    async def GetTrustBundle(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        if self.failures:
            raise self.failures.pop()
        return identity_pb2.GetTrustBundleResponse()

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.held += 1
        if self.held == 2:
            self.both_held.set()
        await self.let_go.wait()
        return identity_pb2.RenewResponse()

    async def Attest(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError


@pytest.fixture
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Flaky, Any, Any]]:
    source = StaticSvidSource(MemoryAuthority().service("controller"))
    servicer = Flaky()
    server = RpcServer(source, TABLE, "127.0.0.1:0", limits=ServerLimits(max_concurrent_rpcs=2))
    server.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, servicer)
    endpoint = f"127.0.0.1:{await server.start()}"
    channels = [
        PeerChannel(source, endpoint, "controller.svc.kars.local", idempotent=idempotent)
        for idempotent in ([f"{SERVICE}/GetTrustBundle"], [])
    ]
    retrying, plain = (channel.stub(identity_pb2_grpc.WorkloadIdentityStub) for channel in channels)
    yield servicer, retrying, plain
    servicer.let_go.set()
    await asyncio.gather(*(channel.close() for channel in channels))
    await server.stop(0)


def busy() -> UnavailableError:
    return UnavailableError("busy", "not now")


async def test_idempotent_call_is_repeated_until_it_succeeds(peer: tuple[Flaky, Any, Any]) -> None:
    servicer, retrying, _ = peer
    servicer.failures = [busy(), busy()]
    await retrying.GetTrustBundle(identity_pb2.GetTrustBundleRequest())
    assert servicer.calls == 3


async def test_call_that_is_not_named_idempotent_is_sent_once(peer: tuple[Flaky, Any, Any]) -> None:
    servicer, _, plain = peer
    servicer.failures = [busy()]
    with pytest.raises(grpc.aio.AioRpcError):
        await plain.GetTrustBundle(identity_pb2.GetTrustBundleRequest())
    assert servicer.calls == 1


async def test_error_that_repeating_cannot_mend_is_not_repeated(peer: tuple[Flaky, Any, Any]) -> None:
    servicer, retrying, _ = peer
    servicer.failures = [PermissionDeniedError("no", "never")]
    with pytest.raises(grpc.aio.AioRpcError):
        await retrying.GetTrustBundle(identity_pb2.GetTrustBundleRequest())
    assert servicer.calls == 1


async def test_budget_ends_retries_while_most_calls_fail(peer: tuple[Flaky, Any, Any]) -> None:
    servicer, retrying, _ = peer
    servicer.failures = [busy() for _ in range(1000)]
    for _ in range(12):
        with pytest.raises(grpc.aio.AioRpcError):
            await retrying.GetTrustBundle(identity_pb2.GetTrustBundleRequest())
    assert servicer.calls < 24  # four attempts each would be 48


async def test_calls_above_the_servers_bound_are_refused_at_once(peer: tuple[Flaky, Any, Any]) -> None:
    servicer, _, plain = peer
    held = [asyncio.ensure_future(plain.Renew(identity_pb2.RenewRequest())) for _ in range(2)]
    await asyncio.wait_for(servicer.both_held.wait(), 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plain.Renew(identity_pb2.RenewRequest())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    servicer.let_go.set()
    await asyncio.gather(*held)
