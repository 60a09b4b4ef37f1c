"""Wiring: builds the object graph once, runs its tasks, ends them in order.

The only module that knows every other. Two listeners: one for Envoy (a socket file, mutual TLS all the same),
one for people and the controller. Start: audit log, kept policies, kept blocklist, then the listeners, then
Envoy.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import certifi
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.audit.v1 import audit_pb2_grpc
from kars.egress.envoy import discovery_pb2_grpc, ext_authz_pb2_grpc
from kars.egress.v1 import egress_pb2_grpc
from kars_common import files
from kars_common.audit import AuditLog, AuditLogServicer
from kars_common.rpc import RpcServer, ServerLimits
from kars_common.spiffe import SpiffeId
from kars_common.svid import SvidSource

from kars_egress import authorization
from kars_egress.allowlists import AllowlistStore
from kars_egress.api.authorize import AuthorizationServicer
from kars_egress.api.control import EgressControlServicer
from kars_egress.api.discovery import DiscoveryServicer
from kars_egress.blocklist.feeds import Fetcher
from kars_egress.blocklist.fetching import HttpFetcher
from kars_egress.blocklist.service import Blocklist, read_feeds
from kars_egress.credentials import Credentials
from kars_egress.decisions.recording import DecisionRecorder
from kars_egress.decisions.spool import Spool
from kars_egress.enforcement import Enforcement
from kars_egress.envoy import bootstrap, identity_files
from kars_egress.envoy.process import EnvoyProcess
from kars_egress.names.serving import NameServers
from kars_egress.settings import EgressSettings
from kars_egress.xds import encoding, topology, types
from kars_egress.xds.snapshot import Snapshot
from kars_egress.xds.subscription import Subscriptions
from kars_egress.xds.topology import Place

_LOG = logging.getLogger(__name__)
_MAX_PUSH_BYTES = 256 * 1024 * 1024
"""A blocklist of the largest size is one message."""


class EgressApp:
    """One egress service with one Envoy."""

    def __init__(
        self,
        settings: EgressSettings,
        source: SvidSource,
        envoy_source: SvidSource,
        *,
        fetcher: Fetcher | None = None,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """Build everything; nothing is bound or started before `running`.

        Raises:
            KarsError: state or settings cannot be used.
        """
        self._settings = settings
        self._source = source
        self._envoy_source = envoy_source
        self._fetcher = fetcher or HttpFetcher()
        self._directory = settings.state_dir / "envoy"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = Place(
            resolver=settings.resolver_address(),
            log_file=str(self._directory / "requests.log"),
            roots_file=str(settings.upstream_roots_file or certifi.where()),
        )
        self.snapshot = Snapshot()
        self.subscriptions = Subscriptions()
        self.audit = _open_log(settings)
        self.names = NameServers()
        self.credentials = Credentials(settings.credentials_file)
        self.enforcement = Enforcement(
            self.snapshot,
            place,
            trust_domain=settings.trust_domain,
            directory=settings.state_dir / "sandboxes",
            clock_s=clock_s,
            names=self.names,
            credential=self.credentials.lookup,
        )
        self._open_gateway(place)
        feeds = read_feeds(settings.feeds_file) if settings.feeds_file is not None else []
        self.blocklist = Blocklist(
            feeds,
            settings.state_dir / "feeds",
            self.snapshot,
            clock_s,
            on_change=self.enforcement.use_blocklist,
        )
        self.envoy = EnvoyProcess(
            self._directory / "bootstrap.json",
            concurrency=settings.envoy_concurrency,
            prefix=_prefix(settings),
        )
        spool = Spool(self._directory / "requests.log", settings.state_dir / "requests.cursor")
        self.decisions = DecisionRecorder(spool, self.audit, self._reopen_log)
        self.proxy_server = self._proxy_server(clock_s)
        self.control_server = self._control_server(clock_s)
        self.control_port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve for the length of a block; the first task that fails ends it."""
        self.credentials.refresh()
        self.enforcement.load()
        self.blocklist.load()
        async with asyncio.TaskGroup() as group:
            start = group.create_task
            tasks = [
                start(self._source.run(), name="identity"),
                start(self._envoy_source.run(), name="proxy identity"),
            ]
            await self._source.wait_changed(None)
            written = await self._envoy_source.wait_changed(None)
            identity_files.write(self._directory, written)
            await self.proxy_server.start()
            self.control_port = await self.control_server.start()
            self._write_bootstrap()
            tasks += [
                start(
                    identity_files.keep_fresh(self._directory, self._envoy_source, written),
                    name="proxy files",
                ),
                start(self.enforcement.run(), name="expiry"),
                start(self.audit.run(), name="audit checkpoints"),
                start(self.credentials.run(self.enforcement.credentials_changed), name="credentials"),
                start(self.decisions.run(), name="decisions"),
                start(self.blocklist.run(self._fetcher, self._settings.feeds_interval_s), name="feeds"),
                start(self.envoy.run(), name="envoy"),
            ]
            try:
                yield
            finally:
                await self.control_server.stop(5)
                await self.proxy_server.stop(1)
                for task in tasks:
                    task.cancel()
                self.names.close()
        await self.decisions.read_once()  # what Envoy wrote at its end
        await self.audit.close()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with self.running():
            files.replace(
                self._settings.state_dir / "control.port", str(self.control_port).encode(), mode=0o644
            )
            await stop.wait()
            _LOG.info("egress stops")
        return 0

    def _open_gateway(self, place: Place) -> None:
        address = self._settings.gateway()
        if address is not None:
            door = topology.gateway(place, address, bootstrap.server_socket(self._directory))
            self.snapshot.put(types.LISTENER, "gateway", encoding.listener(door))

    def _proxy_server(self, clock_s: Callable[[], float]) -> RpcServer:
        limits = ServerLimits(max_send_bytes=_MAX_PUSH_BYTES)
        server = RpcServer(self._source, authorization.PROXY, f"unix:{self._socket}", limits=limits)
        server.add(
            discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server,
            DiscoveryServicer(self.snapshot, self.subscriptions),
        )
        server.add(
            ext_authz_pb2_grpc.add_AuthorizationServicer_to_server,
            AuthorizationServicer(self.enforcement, self.blocklist.match, clock_s),
        )
        return server

    def _control_server(self, clock_s: Callable[[], float]) -> RpcServer:
        settings = self._settings
        server = RpcServer(self._source, authorization.CONTROL, settings.control_address)
        servicer = EgressControlServicer(
            self.enforcement,
            self.subscriptions,
            self.blocklist,
            self.decisions,
            self.audit,
            allowlists=AllowlistStore(settings.allowlists_dir, settings.allowlist_keys_file),
            max_approval_s=settings.max_approval_s,
            max_learning_s=settings.max_learning_s,
            clock_s=clock_s,
        )
        server.add(egress_pb2_grpc.add_EgressControlServicer_to_server, servicer)
        server.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(self.audit))
        return server

    @property
    def _socket(self) -> Path:
        return self._directory / "control.sock"

    def _write_bootstrap(self) -> None:
        own = SpiffeId.service(self._settings.trust_domain, "egress")
        text = bootstrap.render(
            node="egress-proxy",
            directory=self._directory,
            control={"pipe": {"path": str(self._socket)}},
            server_name=own.dns_name,
            server_id=str(own),
        )
        files.replace(self._directory / "bootstrap.json", text.encode())

    def _reopen_log(self) -> None:
        pid = self.envoy.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)


def _prefix(settings: EgressSettings) -> Sequence[str]:
    namespace = settings.envoy_network_namespace
    return [] if namespace is None else [sys.executable, "-m", "kars_egress.envoy.entering", str(namespace)]


def _open_log(settings: EgressSettings) -> AuditLog:
    identity = SpiffeId.service(settings.trust_domain, "egress")
    return AuditLog.open(
        settings.state_dir / "audit", str(identity), _audit_key(settings.state_dir / "audit.key")
    )


def _audit_key(path: Path) -> Ed25519PrivateKey:
    """Return the log's own key, made at the first start."""
    with contextlib.suppress(FileNotFoundError):
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    key = Ed25519PrivateKey.generate()
    files.replace(path, key.private_bytes_raw())
    return key
