"""A gRPC server as every kars service runs it.

mTLS with the service's SVID (rotated without touching open connections), method authorization,
errors with reasons, bounded messages, streams and deadlines, health, reflection, tracing, and an
ordered end: not ready, drain, close. Knows no servicer's meaning.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from kars_common import telemetry
from kars_common.errors import UnavailableError
from kars_common.rpc import interceptors
from kars_common.rpc.authorization import AuthorizationTable
from kars_common.rpc.credentials import server_credentials
from kars_common.rpc.metrics import MetricsInterceptor
from kars_common.svid import SvidSource

_LOG = logging.getLogger(__name__)
_Servicer = TypeVar("_Servicer")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Bounds of one server. Bytes and seconds."""

    max_message_bytes: int = 5 * 1024 * 1024
    """A policy bundle of 4 MiB with its envelope fits."""
    max_send_bytes: int | None = None
    """Bound of what is sent, where it is larger than what is taken; None for the same."""
    max_concurrent_streams: int = 256
    """Calls at once on one connection."""
    max_concurrent_rpcs: int = 1024
    """Calls at once on the whole server; above it, RESOURCE_EXHAUSTED at once."""
    max_unary_s: float = 60.0
    stream_grace_s: float = 0.5
    """At stop, how long open streams go on; most are watches, which never end by themselves."""
    keepalive_s: float = 60.0
    """Ping an idle connection this often; a dead peer is noticed within this and 20 s."""


class RpcServer:
    """One listener with its servicers. Build, `add`, `start`, `stop`; not reusable."""

    def __init__(
        self,
        source: SvidSource | None,
        authorization: AuthorizationTable,
        address: str,
        *,
        limits: ServerLimits | None = None,
        registry: CollectorRegistry | None = None,
        require_client_certificate: bool = True,
    ) -> None:
        """Build a server; nothing is bound before `start`.

        Args:
            source: the SVID to serve with. None serves plaintext and proves nobody: only methods open
                to ANYONE can be called. For in-process tests of servicers.
            authorization: who may call what; a method it does not hold is refused.
            address: `host:port`, port 0 for any, or `unix:<path>`.
            limits: bounds; None for the defaults.
            registry: where calls are counted and timed; None counts nothing.
            require_client_certificate: False only for the listener where identities are obtained.
        """
        self._source = source
        self._address = address
        self._health = health.aio.HealthServicer()
        self._services: list[str] = []
        self._authorization = authorization.with_standard_services(anyone=not require_client_certificate)
        self._require_client_certificate = require_client_certificate
        self._limits = limits = limits or ServerLimits()
        self._streams = interceptors.StreamInterceptor()
        self._server = grpc.aio.server(
            interceptors=[
                *telemetry.server_interceptors(),
                *([MetricsInterceptor(registry, self._authorization.methods)] if registry else ()),
                interceptors.ErrorInterceptor(),
                interceptors.AuthorizationInterceptor(self._authorization, self._trust_domain),
                interceptors.DeadlineInterceptor(limits.max_unary_s),
                self._streams,
            ],
            options=_options(limits),
            maximum_concurrent_rpcs=limits.max_concurrent_rpcs,
        )
        self.add(health_pb2_grpc.add_HealthServicer_to_server, self._health)

    @classmethod
    def bootstrap(
        cls,
        source: SvidSource,
        authorization: AuthorizationTable,
        address: str,
        *,
        limits: ServerLimits | None = None,
    ) -> Self:
        """Build a server that proves itself and asks callers for no certificate."""
        return cls(source, authorization, address, limits=limits, require_client_certificate=False)

    def add(self, register: Callable[[_Servicer, Any], None], servicer: _Servicer) -> Self:
        """Register a servicer by its generated `add_X_to_server`; returns self to chain."""
        recorder = _Recorder(self._server)
        register(servicer, recorder)
        self._services.extend(recorder.services)
        return self

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the registered services."""
        return tuple(self._services)

    @property
    def authorization(self) -> AuthorizationTable:
        """The table in use, standard services included."""
        return self._authorization

    def methods(self) -> frozenset[str]:
        """Return the full names of all methods that are served; a service's test compares them to its table.

        Raises:
            KeyError: for a service whose stubs are not loaded.
        """
        names = (*self._services, *((reflection.SERVICE_NAME,) if self._describes_itself else ()))
        found = (descriptor_pool.Default().FindServiceByName(name) for name in names)
        return frozenset(
            f"{service.full_name}/{method.name}" for service in found for method in service.methods
        )

    def ungoverned(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return methods without a rule, and rules without a method; both empty in a sound service."""
        return self.methods() - self._authorization.methods, self._authorization.methods - self.methods()

    @property
    def _describes_itself(self) -> bool:
        # The bootstrap listener describes nothing to strangers.
        return self._require_client_certificate and self._source is not None

    async def start(self, *, ready: bool = True) -> int:
        """Bind, serve and return the port.

        Args:
            ready: what health says at first; `set_ready` changes it.

        Raises:
            UnavailableError: `svid_unavailable` when the source has none yet, `address_unavailable`.
        """
        if self._describes_itself:
            reflection.enable_server_reflection((*self._services, reflection.SERVICE_NAME), self._server)
        try:
            port = self._bind()
        except RuntimeError as exc:
            raise UnavailableError("address_unavailable", f"cannot listen on {self._address}") from exc
        await self.set_ready(ready=ready)
        await self._server.start()
        _LOG.info("rpc server started", extra={"address": self._address, "port": port})
        return port

    async def set_ready(self, *, ready: bool) -> None:
        """Set what health answers for this server and each of its services."""
        for service in ("", *self._services):
            await self._health.set(service, _SERVING if ready else _NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Say not ready, refuse new calls, let open ones finish for `grace_s`, then end them.

        Streams are ended sooner (`stream_grace_s`), as UNAVAILABLE `server_stopping`.
        """
        self._streams.end(min(grace_s, self._limits.stream_grace_s))
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait_stopped(self) -> None:
        """Wait until the server has ended."""
        await self._server.wait_for_termination()

    def _bind(self) -> int:
        if self._source is None:
            return self._server.add_insecure_port(self._address)
        credentials = server_credentials(
            self._source, require_client_certificate=self._require_client_certificate
        )
        return self._server.add_secure_port(self._address, credentials)

    def _trust_domain(self) -> str:
        if self._source is None:
            raise UnavailableError("svid_unavailable", "this server has no identity to compare callers with")
        return self._source.current().spiffe_id.trust_domain


class _Recorder:
    """Stands in for the server while a servicer registers, to note the service's name."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        for handler in handlers:
            if isinstance(handler, grpc.ServiceRpcHandler):
                self.services.append(handler.service_name())
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, interceptors.Handler]
    ) -> None:
        self._server.add_registered_method_handlers(service, handlers)


def _options(limits: ServerLimits) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_send_bytes or limits.max_message_bytes),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a share of the calls
    ]
