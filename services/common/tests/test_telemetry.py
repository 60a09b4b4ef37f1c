"""Traces cross a real call when tracing is on; when it is off, nothing of it is loaded."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common import telemetry
from kars_common.errors import NotFoundError
from kars_common.rpc import ANY_IDENTITY, AuthorizationTable, PeerChannel, RpcServer, mapped_errors
from kars_common.testing import MemoryAuthority, StaticSvidSource
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import Counter

METHOD = "kars.policy.v1.PolicyDiscovery/GetSigningKeys"


class Servicer(policy_pb2_grpc.PolicyDiscoveryServicer):
    async def GetSigningKeys(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotFoundError("no_keys", "none")

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for _ in request_iterator:
            yield policy_pb2.WatchResponse()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry.configure_tracing("kars-tested", None, exporter=exporter)
    yield exporter
    telemetry.shutdown_tracing()


async def test_client_and_server_spans_share_a_trace(exporter: InMemorySpanExporter) -> None:
    source = StaticSvidSource(MemoryAuthority().service("controller"))
    server = RpcServer(source, AuthorizationTable({METHOD: [ANY_IDENTITY]}), "127.0.0.1:0")
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, Servicer())
    port = await server.start()
    channel = PeerChannel(source, f"127.0.0.1:{port}", "controller.svc.kars.local")
    with pytest.raises(NotFoundError), mapped_errors():
        await channel.stub(policy_pb2_grpc.PolicyDiscoveryStub).GetSigningKeys(
            policy_pb2.GetSigningKeysRequest()
        )
    await channel.close()
    await server.stop(1)
    assert telemetry._Tracing.provider is not None
    telemetry._Tracing.provider.force_flush()
    spans = exporter.get_finished_spans()
    assert {span.kind.name for span in spans} == {"CLIENT", "SERVER"}
    assert len({span.context.trace_id for span in spans if span.context}) == 1


def test_tracing_that_is_off_loads_nothing() -> None:
    code = (
        "import sys, kars_common.rpc, kars_common.telemetry as t;"
        "t.configure_tracing('x', None); assert not t.server_interceptors();"
        "loaded = [m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))];"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_metrics_are_rendered_from_their_own_registry() -> None:
    registry = telemetry.process_registry(
        lambda r: Counter("kars_tested", "Things tested.", registry=r).inc()
    )
    text = telemetry.render_metrics(registry).decode()
    assert "kars_tested_total 1.0" in text
    assert "process_resident_memory_bytes" in text
    assert b"kars_tested" not in telemetry.render_metrics(telemetry.process_registry())
