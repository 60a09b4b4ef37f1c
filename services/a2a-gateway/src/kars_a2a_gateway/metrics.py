"""Metrics of the gateway. Labels come from closed sets; no caller and no agent is one."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from kars_a2a_gateway.errors import A2AError


class GatewayMetrics:
    """Counters and gauges of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.refused = Counter(
            "kars_a2a_refused_total", "Requests that were refused", ["reason"], registry=registry
        )
        self.pushes = Counter(
            "kars_a2a_pushes_total", "What became of pushes", ["outcome"], registry=registry
        )
        self._registry = registry

    def count_refusal(self, error: A2AError) -> None:
        """Count a refusal by its reason."""
        self.refused.labels(error.kind.reason.lower()).inc()

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value as a gauge."""
        Gauge(name, text, registry=self._registry).set_function(value)
