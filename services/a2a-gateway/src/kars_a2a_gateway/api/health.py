"""Liveness, readiness and metrics, in plain HTTP on an address of its own."""

from collections.abc import Callable

import orjson
from kars_common import telemetry
from prometheus_client import CollectorRegistry

from kars_a2a_gateway.api.exchange import Exchange, Receive, Scope, Send


class HealthApp:
    """A small ASGI application."""

    def __init__(self, registry: CollectorRegistry, missing: Callable[[], list[str]]) -> None:
        """Build.

        Args:
            registry: what is scraped.
            missing: names what readiness waits for; empty means ready.
        """
        self._registry = registry
        self._missing = missing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send, ())
        if exchange.path == "/healthz":
            await exchange.respond(200, b"ok\n", "text/plain")
        elif exchange.path == "/readyz":
            missing = self._missing()
            body = orjson.dumps({"ready": not missing, "missing": missing})
            await exchange.respond(503 if missing else 200, body, "application/json")
        elif exchange.path == "/metrics":
            body = telemetry.render_metrics(self._registry)
            await exchange.respond(200, body, telemetry.METRICS_CONTENT_TYPE)
        else:
            await exchange.respond(404, b"", "text/plain")
