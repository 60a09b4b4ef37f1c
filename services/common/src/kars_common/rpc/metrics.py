"""Counts and times every call that a server answers, for Prometheus.

Stands outside the error mapping, so that it sees the status that the caller gets. Labels come from a
closed set: a method that no rule names is counted as `other`.
"""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from kars_common.rpc.interceptors import Context, Interceptor

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class MetricsInterceptor(Interceptor):
    """Keeps `kars_rpc_handled_total` and `kars_rpc_seconds`."""

    def __init__(self, registry: CollectorRegistry, methods: Collection[str]) -> None:
        """Register the metrics.

        Args:
            registry: where to; one server a registry.
            methods: full names that get a label of their own.
        """
        self._methods = methods
        self._handled = Counter(
            "kars_rpc_handled", "Calls answered, by gRPC status.", ["method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "kars_rpc_seconds",
            "Time until a call was answered; streams until they ended.",
            ["method"],
            registry=registry,
            buckets=_BUCKETS_S,
        )

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        """Count one call, however it ends."""
        label = method if method in self._methods else "other"
        started, code = time.perf_counter(), "CANCELLED"
        try:
            yield
            code = _code_of(context)
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        finally:
            self._handled.labels(label, code).inc()
            self._seconds.labels(label).observe(time.perf_counter() - started)


def _code_of(context: Context) -> str:
    # gRPC gives a number or an enum member, and 0 for a call that was not aborted.
    code: object = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _CODES.get(code, "UNKNOWN") if isinstance(code, int) else "OK"
