"""Traces and metrics: OpenTelemetry set up once, Prometheus text for scrapers.

Tracing costs nothing until `configure_tracing` is called: the SDK, the instrumentation and the
exporter are imported there, not here. Knows no service's spans or metrics.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

_UNTRACED = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})


class _Tracing:
    """The one provider of this process; tracing is off while it is None."""

    provider: "TracerProvider | None" = None


def configure_tracing(
    service: str, otlp_endpoint: str | None, *, exporter: "SpanExporter | None" = None
) -> None:
    """Turn tracing on when there is somewhere to send spans; call once, before servers and channels.

    Args:
        service: `service.name` of the spans.
        otlp_endpoint: URL of an OTLP/gRPC collector (`http://` is plaintext); None leaves tracing off.
        exporter: another destination, instead of OTLP.
    """
    if exporter is None and otlp_endpoint is None:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if exporter is None:
        # Imported only when spans leave the process: 5 MiB that most processes save.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(
            endpoint=otlp_endpoint, insecure=bool(otlp_endpoint and otlp_endpoint.startswith("http://"))
        )
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _Tracing.provider = provider


def shutdown_tracing() -> None:
    """Send what is buffered and turn tracing off; blocks for at most the exporter's own timeout."""
    provider, _Tracing.provider = _Tracing.provider, None
    if provider is not None:
        provider.shutdown()


def server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """Return what makes a span of every call that a server answers; empty while tracing is off."""
    if _Tracing.provider is None:
        return ()
    from opentelemetry.instrumentation.grpc import aio_server_interceptor

    return (
        aio_server_interceptor(  # type: ignore[no-untyped-call]  # the library is untyped
            tracer_provider=_Tracing.provider, filter_=_traced
        ),
    )


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Return what makes a span of every call that a channel sends; empty while tracing is off."""
    if _Tracing.provider is None:
        return ()
    from opentelemetry.instrumentation.grpc import aio_client_interceptors

    interceptors = aio_client_interceptors(  # type: ignore[no-untyped-call]  # the library is untyped
        tracer_provider=_Tracing.provider
    )
    return tuple(interceptors)


def render_metrics(registry: CollectorRegistry) -> bytes:
    """Return a registry in the Prometheus text format (`METRICS_CONTENT_TYPE`)."""
    return generate_latest(registry)


def process_registry(*collectors: Callable[[CollectorRegistry], Any]) -> CollectorRegistry:
    """Return a registry with the process and platform metrics and those that `collectors` register.

    A registry of one's own instead of the library's global one: two servers in one process do not mix.
    """
    from prometheus_client import PlatformCollector, ProcessCollector

    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    for collect in collectors:
        collect(registry)
    return registry


def _traced(details: grpc.HandlerCallDetails) -> bool:
    return details.method.lstrip("/").partition("/")[0] not in _UNTRACED
