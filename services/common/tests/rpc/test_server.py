"""Servers over real mTLS channels: who gets in, what is refused, and with which reason."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kars.identity.v1 import identity_pb2, identity_pb2_grpc
from kars_common.errors import (
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidInputError,
    KarsError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from kars_common.rpc import (
    ANY_IDENTITY,
    ANYONE,
    AuthorizationTable,
    PeerChannel,
    RpcServer,
    ServerLimits,
    caller,
    from_rpc_error,
    mapped_errors,
)
from kars_common.spiffe import SpiffeId
from kars_common.testing import MemoryAuthority, StaticSvidSource
from prometheus_client import CollectorRegistry

RENEW = "kars.identity.v1.WorkloadIdentity/Renew"
GET_BUNDLE = "kars.identity.v1.WorkloadIdentity/GetTrustBundle"
ATTEST = "kars.identity.v1.WorkloadIdentity/Attest"
TABLE = AuthorizationTable({RENEW: ["ns/*/sandbox/*", "svc/*"], GET_BUNDLE: [ANY_IDENTITY]})


class Servicer(identity_pb2_grpc.WorkloadIdentityServicer):
    """Answers with the caller's id; fails as the CSR field says."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802  # the generated name
        if request.csr_pem == "bug":
            raise RuntimeError("password=hunter2")
        if request.csr_pem == "bad":
            raise InvalidInputError(
                "csr_invalid", "bad csr", {"at": "here"}, [FieldViolation("csr_pem", "not PEM")]
            )
        if request.csr_pem == "large":
            return identity_pb2.RenewResponse(svid=identity_pb2.Svid(spiffe_id="x" * 2048))
        if request.csr_pem == "wait":
            self.entered.set()
            await self.let_go.wait()
        return identity_pb2.RenewResponse(svid=identity_pb2.Svid(spiffe_id=str(caller(context))))

    async def GetTrustBundle(self, request: Any, context: Any) -> Any:  # noqa: N802
        return identity_pb2.GetTrustBundleResponse(trust_bundle_pem="x")

    async def Attest(self, request: Any, context: Any) -> Any:  # noqa: N802
        return identity_pb2.AttestResponse(svid=identity_pb2.Svid(spiffe_id="attested"))


@contextlib.asynccontextmanager
async def serving(
    source: StaticSvidSource, *, table: AuthorizationTable = TABLE, limits: ServerLimits | None = None
) -> AsyncIterator[tuple[str, Servicer, RpcServer]]:
    server = RpcServer(source, table, "127.0.0.1:0", limits=limits)
    servicer = Servicer()
    server.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, servicer)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}", servicer, server
    finally:
        servicer.let_go.set()
        await server.stop(1)


@contextlib.asynccontextmanager
async def calling(source: StaticSvidSource, endpoint: str, **options: Any) -> AsyncIterator[Any]:
    channel = PeerChannel(source, endpoint, "controller.svc.kars.local", **options)
    try:
        yield channel.stub(identity_pb2_grpc.WorkloadIdentityStub)
    finally:
        await channel.close()


@pytest.fixture
def authority() -> MemoryAuthority:
    return MemoryAuthority()


@pytest.fixture
def controller(authority: MemoryAuthority) -> StaticSvidSource:
    return StaticSvidSource(authority.service("controller"))


async def failure(call: Any) -> KarsError:
    with pytest.raises(KarsError) as caught, mapped_errors():
        await call
    return caught.value


async def test_caller_is_the_identity_of_the_certificate(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    async with (
        serving(controller) as (endpoint, _, _),
        calling(StaticSvidSource(authority.sandbox("team", "writer")), endpoint) as stub,
    ):
        answer = await stub.Renew(identity_pb2.RenewRequest())
    assert answer.svid.spiffe_id == "spiffe://kars.local/ns/team/sandbox/writer"


async def test_caller_outside_the_pattern_is_refused(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    async with (
        serving(controller) as (endpoint, _, _),
        calling(StaticSvidSource(authority.operator("eve")), endpoint) as stub,
    ):
        error = await failure(stub.Renew(identity_pb2.RenewRequest()))
        assert isinstance(error, PermissionDeniedError)
        assert error.reason == "caller_not_authorized"
        await stub.GetTrustBundle(identity_pb2.GetTrustBundleRequest())


async def test_method_without_a_rule_is_refused_although_it_is_implemented(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    async with (
        serving(controller) as (endpoint, _, _),
        calling(StaticSvidSource(authority.service("controller")), endpoint) as stub,
    ):
        error = await failure(stub.Attest(identity_pb2.AttestRequest()))
    assert error.reason == "method_not_authorized"


async def test_method_with_a_rule_but_no_servicer_is_not_found(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    table = AuthorizationTable({"kars.policy.v1.PolicyDiscovery/GetSigningKeys": [ANY_IDENTITY]})
    async with serving(controller, table=table) as (endpoint, _, _):
        channel = PeerChannel(controller, endpoint, "controller.svc.kars.local")
        call = channel.stub(_raw("/kars.policy.v1.PolicyDiscovery/GetSigningKeys"))
        error = await failure(call(b""))
        await channel.close()
    assert isinstance(error, NotFoundError)
    assert error.reason == "method_not_found"


def _raw(method: str) -> Any:
    return lambda channel: channel.unary_unary(method)


async def test_method_nobody_knows_is_refused(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    async with serving(controller) as (endpoint, _, _):
        channel = PeerChannel(controller, endpoint, "controller.svc.kars.local")
        error = await failure(channel.stub(_raw("/no.such.Service/Method"))(b""))
        await channel.close()
    assert error.reason == "method_not_authorized"


async def test_certificate_of_another_authority_is_refused(controller: StaticSvidSource) -> None:
    stranger = MemoryAuthority("kars.local").service("controller")
    trusting = _with_bundle(stranger, controller.current().trust_bundle_pem)
    async with (
        serving(controller) as (endpoint, _, _),
        calling(StaticSvidSource(trusting), endpoint) as stub,
    ):
        assert isinstance(await failure(stub.Renew(identity_pb2.RenewRequest())), UnavailableError)


async def test_identity_of_another_trust_domain_is_refused(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    svid = authority.issue(SpiffeId.service("elsewhere.example", "controller"))
    async with (
        serving(controller) as (endpoint, _, _),
        calling(StaticSvidSource(svid), endpoint) as stub,
    ):
        error = await failure(stub.Renew(identity_pb2.RenewRequest()))
    assert error.reason == "trust_domain_not_accepted"


async def test_expired_client_certificate_is_refused(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    expired = authority.issue(
        SpiffeId.service("kars.local", "relay"),
        issued_at=datetime.now(UTC) - timedelta(hours=2),
    )
    source = StaticSvidSource(expired)
    source.current = lambda: expired  # type: ignore[method-assign]  # a client that does not check itself
    async with (
        serving(controller) as (endpoint, _, _),
        calling(source, endpoint) as stub,
    ):
        assert isinstance(await failure(stub.Renew(identity_pb2.RenewRequest())), UnavailableError)


async def test_expired_svid_is_not_used_by_its_own_holder(authority: MemoryAuthority) -> None:
    expired = authority.issue(
        SpiffeId.service("kars.local", "relay"), issued_at=datetime.now(UTC) - timedelta(hours=2)
    )
    async with calling(StaticSvidSource(expired), "127.0.0.1:1") as stub:
        with pytest.raises(UnavailableError, match="expired"):
            stub.Renew(identity_pb2.RenewRequest())


async def test_caller_without_certificate_does_not_get_in(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    credentials = grpc.ssl_channel_credentials(authority.trust_bundle_pem)
    options = [("grpc.ssl_target_name_override", "controller.svc.kars.local")]
    async with (
        serving(controller) as (endpoint, _, _),
        grpc.aio.secure_channel(endpoint, credentials, options=options) as channel,
    ):
        stub: Any = identity_pb2_grpc.WorkloadIdentityStub(channel)
        error = await failure(stub.Renew(identity_pb2.RenewRequest(), timeout=5))
    assert isinstance(error, UnavailableError)


async def test_server_with_another_name_is_not_believed(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    impostor = StaticSvidSource(authority.sandbox("team", "writer"))
    async with (
        serving(impostor) as (endpoint, _, _),
        calling(controller, endpoint) as stub,
    ):
        assert isinstance(await failure(stub.Renew(identity_pb2.RenewRequest())), UnavailableError)


async def test_error_crosses_the_wire_with_reason_metadata_and_violations(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    async with serving(controller) as (endpoint, _, _), calling(controller, endpoint) as stub:
        error = await failure(stub.Renew(identity_pb2.RenewRequest(csr_pem="bad")))
    assert isinstance(error, InvalidInputError)
    assert (error.reason, error.message, dict(error.metadata)) == ("csr_invalid", "bad csr", {"at": "here"})
    assert error.violations == (FieldViolation("csr_pem", "not PEM"),)


async def test_unknown_error_becomes_internal_without_its_text(
    controller: StaticSvidSource, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(controller) as (endpoint, _, _), calling(controller, endpoint) as stub:
        error = await failure(stub.Renew(identity_pb2.RenewRequest(csr_pem="bug")))
    assert isinstance(error, InternalError)
    assert error.reason == "internal"
    assert "hunter2" not in error.message
    assert "call failed" in caplog.text


async def test_unary_call_ends_at_the_servers_bound_whatever_the_client_asks(
    controller: StaticSvidSource,
) -> None:
    limits = ServerLimits(max_unary_s=0.05)
    async with serving(controller, limits=limits) as (endpoint, _, _), calling(controller, endpoint) as stub:
        error = await failure(stub.Renew(identity_pb2.RenewRequest(csr_pem="wait"), timeout=30))
    assert isinstance(error, DeadlineExceededError)


async def test_unary_call_without_a_deadline_gets_the_channels(controller: StaticSvidSource) -> None:
    async with (
        serving(controller) as (endpoint, _, _),
        calling(controller, endpoint, timeout_s=0.05) as stub,
    ):
        error = await failure(stub.Renew(identity_pb2.RenewRequest(csr_pem="wait")))
    assert isinstance(error, DeadlineExceededError)


async def test_message_above_the_limit_is_refused(controller: StaticSvidSource) -> None:
    limits = ServerLimits(max_message_bytes=1024)
    async with serving(controller, limits=limits) as (endpoint, _, _), calling(controller, endpoint) as stub:
        error = await failure(stub.Renew(identity_pb2.RenewRequest(csr_pem="x" * 2048)))
    assert error.reason == "resource_exhausted"


@pytest.mark.parametrize(("most", "passes"), [(None, False), (4096, True)])
async def test_what_is_sent_may_be_larger_than_what_is_taken(
    controller: StaticSvidSource, most: int | None, *, passes: bool
) -> None:
    limits = ServerLimits(max_message_bytes=1024, max_send_bytes=most)
    async with serving(controller, limits=limits) as (endpoint, _, _), calling(controller, endpoint) as stub:
        large = failure_or_none(stub.Renew(identity_pb2.RenewRequest(csr_pem="large")))
        assert (await large is None) is passes
        error = await failure(stub.Renew(identity_pb2.RenewRequest(csr_pem="x" * 2048)))
    assert error.reason == "resource_exhausted"


async def test_stop_lets_an_open_call_finish_and_refuses_the_next(controller: StaticSvidSource) -> None:
    async with serving(controller) as (endpoint, servicer, server), calling(controller, endpoint) as stub:
        opened = asyncio.ensure_future(stub.Renew(identity_pb2.RenewRequest(csr_pem="wait")))
        await asyncio.wait_for(servicer.entered.wait(), 5)
        stopping = asyncio.create_task(server.stop(5))
        while not isinstance(
            await failure_or_none(stub.Renew(identity_pb2.RenewRequest(), timeout=5)), UnavailableError
        ):
            await asyncio.sleep(0.01)
        servicer.let_go.set()
        assert (await asyncio.wait_for(opened, 5)).svid.spiffe_id
        await asyncio.wait_for(stopping, 5)


async def failure_or_none(call: Any) -> KarsError | None:
    try:
        await call
    except grpc.aio.AioRpcError as exc:
        return from_rpc_error(exc)
    return None


async def test_health_follows_readiness(controller: StaticSvidSource) -> None:
    async with serving(controller) as (endpoint, _, server):
        channel = PeerChannel(controller, endpoint, "controller.svc.kars.local")
        health: Any = channel.stub(health_pb2_grpc.HealthStub)
        request = health_pb2.HealthCheckRequest(service="kars.identity.v1.WorkloadIdentity")
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        await server.set_ready(ready=False)
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await channel.close()


async def test_health_watch_streams_changes(controller: StaticSvidSource) -> None:
    async with serving(controller) as (endpoint, _, server):
        channel = PeerChannel(controller, endpoint, "controller.svc.kars.local")
        health: Any = channel.stub(health_pb2_grpc.HealthStub)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await server.set_ready(ready=False)
        assert (await asyncio.wait_for(watch.read(), 5)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await channel.close()


async def test_bootstrap_listener_serves_only_what_anyone_may_call(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    table = AuthorizationTable({ATTEST: [ANYONE]})
    server = RpcServer.bootstrap(controller, table, "127.0.0.1:0")
    server.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, Servicer())
    port = await server.start()
    options = [("grpc.ssl_target_name_override", "controller.svc.kars.local")]
    credentials = grpc.ssl_channel_credentials(authority.trust_bundle_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        stub: Any = identity_pb2_grpc.WorkloadIdentityStub(channel)
        assert (await stub.Attest(identity_pb2.AttestRequest(), timeout=5)).svid.spiffe_id == "attested"
        error = await failure(stub.Renew(identity_pb2.RenewRequest(), timeout=5))
    await server.stop(0)
    assert error.reason == "method_not_authorized"


async def test_rule_for_identities_on_the_bootstrap_listener_asks_for_a_certificate(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    server = RpcServer.bootstrap(controller, TABLE, "127.0.0.1:0")
    server.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, Servicer())
    port = await server.start()
    async with calling(controller, f"127.0.0.1:{port}") as stub:
        error = await failure(stub.Renew(identity_pb2.RenewRequest()))
    await server.stop(0)
    assert isinstance(error, UnauthenticatedError)
    assert error.reason == "client_certificate_required"


async def test_calls_are_counted_under_a_closed_set_of_labels(
    authority: MemoryAuthority, controller: StaticSvidSource
) -> None:
    registry = CollectorRegistry()
    server = RpcServer(controller, TABLE, "127.0.0.1:0", registry=registry)
    server.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, Servicer())
    endpoint = f"127.0.0.1:{await server.start()}"
    async with calling(controller, endpoint) as stub:
        await stub.Renew(identity_pb2.RenewRequest())
        await failure(stub.Renew(identity_pb2.RenewRequest(csr_pem="bad")))
        await failure(stub.Attest(identity_pb2.AttestRequest()))
    channel = PeerChannel(controller, endpoint, "controller.svc.kars.local")
    for number in range(3):
        await failure(channel.stub(_raw(f"/made.up.Service/Method{number}"))(b""))
    await channel.close()
    await server.stop(0)
    counted = {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "kars_rpc_handled_total"
    }
    assert counted == {
        (RENEW, "OK"): 1,
        (RENEW, "INVALID_ARGUMENT"): 1,
        ("other", "PERMISSION_DENIED"): 4,
    }


async def test_busy_address_is_reported(controller: StaticSvidSource) -> None:
    async with serving(controller) as (endpoint, _, _):
        with pytest.raises(UnavailableError) as caught:
            await RpcServer(controller, TABLE, endpoint).start()
    assert caught.value.reason == "address_unavailable"


def _with_bundle(svid: Any, trust_bundle_pem: bytes) -> Any:
    import dataclasses

    return dataclasses.replace(svid, trust_bundle_pem=trust_bundle_pem)
