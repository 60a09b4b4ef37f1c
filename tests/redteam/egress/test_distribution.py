"""What Envoy refuses stays out and is shown; who is not Envoy gets nothing."""

import functools
from collections.abc import AsyncIterator

import pytest
from kars.egress.envoy import discovery_pb2, discovery_pb2_grpc, ext_authz_pb2, ext_authz_pb2_grpc, route_pb2
from kars.egress.v1 import egress_pb2
from kars_common.errors import KarsError
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.svid import Svid
from kars_common.testing import MemoryAuthority, StaticSvidSource
from kars_egress.xds import types
from kars_egress_testkit.running import Scene, wait
from kars_egress_testkit.service import SANDBOX

NAME = f"sandbox/{SANDBOX}"


def test_a_refused_version_is_shown_and_the_last_good_one_holds(stage: Scene) -> None:
    """Two virtual hosts for one domain: Envoy says no."""
    app = stage.egress.app
    good = app.snapshot.get(types.ROUTES, NAME)
    assert good is not None
    twice = [route_pb2.VirtualHost(name=name, domains=["same.test"]) for name in ("one", "two")]
    bad = route_pb2.RouteConfiguration(name=NAME, virtual_hosts=twice).SerializeToString()

    async def put(data: bytes) -> None:
        app.snapshot.put(types.ROUTES, NAME, data, SANDBOX)

    stage.call(lambda: put(bad))
    wait(lambda: distribution(stage)[0] == egress_pb2.DISTRIBUTION_REFUSED, "the refusal is shown")
    assert "same.test" in distribution(stage)[1]
    assert stage.agent.http("api.allowed.test").status == 200
    assert stage.agent.http("hidden.test").status == 403
    stage.call(lambda: put(good.data))
    wait(lambda: distribution(stage)[0] == egress_pb2.DISTRIBUTION_ACTIVE, "the good one is in force")


def test_only_envoys_get_configuration(stage: Scene) -> None:
    authority = stage.egress.authority
    strangers = authority.operator("olga"), authority.service("router"), authority.service("controller")
    for svid in strangers:
        assert refusal(stage, svid) == "caller_not_authorized"
    assert refusal(stage, MemoryAuthority().service("egress-proxy")) == "unavailable"


def refusal(stage: Scene, svid: Svid) -> str:
    """Return why there was no answer; `internal` is gRPC still writing, so it is asked again."""
    reasons: list[str] = []

    def told() -> bool:
        with pytest.raises(KarsError) as refused:
            stage.call(functools.partial(first_answer, stage, svid))
        reasons.append(refused.value.reason)
        return reasons[-1] != "internal"

    wait(told, "the refusal is told")
    return reasons[-1]


def test_a_sandboxs_envoy_gets_its_own_configuration_only(stage: Scene) -> None:
    own = stage.call(lambda: first_answer(stage, stage.egress.authority.sandbox("team", "writer")))
    assert f"sandbox/{SANDBOX}/proxy" in {resource.name for resource in own.resources}
    other = stage.call(lambda: first_answer(stage, stage.egress.authority.sandbox("team", "reader")))
    assert {resource.name for resource in other.resources} == {"tunnel"}


def test_a_sandboxs_envoy_cannot_ask_for_another_sandbox(stage: Scene) -> None:
    async def ask() -> None:
        async with _channel(stage, stage.egress.authority.sandbox("team", "reader")) as channel:
            request = ext_authz_pb2.CheckRequest()
            request.attributes.context_extensions["sandbox"] = str(SANDBOX)
            with mapped_errors():
                await channel.stub(ext_authz_pb2_grpc.AuthorizationStub).Check(request)

    with pytest.raises(KarsError) as refused:
        stage.call(ask)
    assert refused.value.reason == "sandbox_not_own"


def distribution(stage: Scene) -> tuple[int, str]:
    app = stage.egress.app

    async def ask() -> tuple[int, str]:
        return app.enforcement.distribution(SANDBOX, app.subscriptions)

    return stage.call(ask)


async def first_answer(stage: Scene, svid: Svid) -> discovery_pb2.DeltaDiscoveryResponse:
    async def requests() -> AsyncIterator[discovery_pb2.DeltaDiscoveryRequest]:
        yield discovery_pb2.DeltaDiscoveryRequest(type_url=types.LISTENER)

    async with _channel(stage, svid) as channel:
        stub = channel.stub(discovery_pb2_grpc.AggregatedDiscoveryServiceStub)
        with mapped_errors():
            async for response in stub.DeltaAggregatedResources(requests(), timeout=5):
                assert isinstance(response, discovery_pb2.DeltaDiscoveryResponse)
                return response
    raise AssertionError("the stream ended without an answer")


class _channel:  # noqa: N801 - reads as a call
    def __init__(self, stage: Scene, svid: Svid) -> None:
        socket = stage.egress.settings.state_dir / "envoy" / "control.sock"
        self._channel = PeerChannel(StaticSvidSource(svid), f"unix:{socket}", "egress.svc.kars.local")

    async def __aenter__(self) -> PeerChannel:
        return self._channel

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
