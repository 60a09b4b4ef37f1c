"""Wiring: builds the object graph once, runs its tasks, ends them in order.

The only module that knows every other. Start: audit log, stores, last known good policy, identity, listeners.
End: listeners refuse and drain, streams are told to come back, then stores, then the log.
"""

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.audit.v1 import audit_pb2_grpc
from kars.mesh.v1 import federation_pb2_grpc, registry_pb2_grpc, relay_pb2_grpc
from kars.policy.v1 import policy_pb2_grpc
from kars_common import files, telemetry
from kars_common.audit import AuditLog, AuditLogServicer
from kars_common.errors import KarsError
from kars_common.rpc import RpcServer, ServerLimits
from kars_common.spiffe import SpiffeId
from kars_common.svid import SvidSource
from prometheus_client import CollectorRegistry, start_http_server

from kars_relay.api.federation import FederationServicer
from kars_relay.api.registry import RegistryServicer
from kars_relay.api.relay import RelayDoor
from kars_relay.api.sealed import SealedDoor
from kars_relay.api.status import InForceServicer, StatusServicer
from kars_relay.authorization import MAIN, SEALED
from kars_relay.controller import ControllerLink, svid_source
from kars_relay.federation import Couriers, FederatedSource, FederationTable, ForeignRegistries
from kars_relay.federation.channels import FederationChannels
from kars_relay.federation.trust import all_roots
from kars_relay.mailbox import MailboxStore
from kars_relay.mailbox.jetstream import JetStreamMailboxes
from kars_relay.mailbox.sqlite import SqliteMailboxes
from kars_relay.metrics import RelayMetrics
from kars_relay.policy import MeshPolicy, Rules
from kars_relay.recorder import Recorder
from kars_relay.registry import Directory, Prekeys, RegistryDatabase, Reputations, TakeLimits
from kars_relay.registry.desk import RegistryDesk
from kars_relay.routing import Exchange, Hub, SessionLimits
from kars_relay.settings import RelaySettings
from kars_relay.transparency import RegistrationLog

_LOG = logging.getLogger(__name__)


class RelayApp:
    """One relay process."""

    def __init__(self, settings: RelaySettings) -> None:
        """Remember the settings; `run` builds and serves."""
        self._settings = settings

    async def run(self, stop: asyncio.Event | None = None) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code.

        Args:
            stop: set from outside to stop; None follows signals.

        Raises:
            KarsError: state cannot be used, or the store failed while serving.
        """
        settings = self._settings
        if stop is None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
        relay = SpiffeId.service(settings.trust_domain, "relay")
        state = settings.state_dir
        log = AuditLog.open(state / "audit", str(relay), _key(state / "audit-signing.key"))
        async with contextlib.AsyncExitStack() as closing:
            closing.push_async_callback(log.close)
            registrations = RegistrationLog(
                state / "registrations", settings.trust_domain, _key(state / "registrations-signing.key")
            )
            closing.push_async_callback(registrations.close)
            store = _mailboxes(settings)
            await store.open()
            closing.push_async_callback(store.close)
            database = RegistryDatabase(state / "registry.db")
            await database.open()
            closing.push_async_callback(database.close)
            source = svid_source(settings)
            graph = _Graph(
                settings,
                relay,
                log=log,
                registrations=registrations,
                store=store,
                database=database,
                source=source,
            )
            closing.push_async_callback(graph.link.close)
            closing.push_async_callback(graph.channels.close)
            await self._serve(graph, stop)
        return 0

    async def _serve(self, graph: "_Graph", stop: asyncio.Event) -> None:
        graph.link.watch.load()
        graph.recorder.event("relay.started", store=graph.store.kind)
        with _unwrapped():
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(graph.log.run(), name="audit checkpoints"),
                    group.create_task(graph.registrations.run(), name="registration heads"),
                    group.create_task(graph.store.run(), name="mailbox upkeep"),
                    group.create_task(graph.source.run(), name="identity"),
                    group.create_task(graph.couriers.run(), name="couriers"),
                ]
                if graph.link.connected:
                    background.append(group.create_task(graph.link.watch.run(), name="policy watch"))
                if graph.link.witnessed:
                    background.append(group.create_task(graph.link.witness_run(), name="audit witness"))
                stopping = group.create_task(stop.wait(), name="stop signal")
                identified = group.create_task(graph.source.wait_changed(None), name="first identity")
                await asyncio.wait({stopping, identified}, return_when=asyncio.FIRST_COMPLETED)
                if identified.done():
                    servers = await graph.start()
                    await stop.wait()
                    _LOG.info("relay stops")
                    for server in servers:
                        await server.stop(self._settings.drain_s)
                for task in (*background, identified):
                    task.cancel()
        graph.recorder.event("relay.stopped")


class _Graph:
    """Everything one relay is made of."""

    def __init__(
        self,
        settings: RelaySettings,
        relay: SpiffeId,
        *,
        log: AuditLog,
        registrations: RegistrationLog,
        store: MailboxStore,
        database: RegistryDatabase,
        source: SvidSource,
    ) -> None:
        self.settings = settings
        self.relay = relay
        self.log = log
        self.registrations = registrations
        self.store = store
        self.source = source
        self.recorder = Recorder(log)
        self.policy = MeshPolicy(settings.trust_domain)
        self.policy.on_change.append(self._policy_applied)
        self.registry = telemetry.process_registry()
        self.metrics = RelayMetrics(self.registry)
        self.hub = Hub(settings.max_connections)
        self.metrics.watch(store.totals, lambda: len(self.hub))
        self.exchange = Exchange(self.policy, store, self.recorder, self.metrics)
        self.channels = FederationChannels(source)
        self.couriers = Couriers(self.policy, store, self.channels, self.recorder)
        self.desk = RegistryDesk(
            policy=self.policy,
            directory=Directory(database, registrations),
            prekeys=Prekeys(database, _take_limits(settings)),
            reputations=Reputations(database),
            log=registrations,
            store=store,
            hub=self.hub,
            recorder=self.recorder,
        )
        self.link = ControllerLink(settings, source, self.policy, log)

    async def start(self) -> list[RpcServer]:
        """Bind and serve all listeners."""
        settings = self.settings
        servers = {"main": self.main_server()}
        if settings.sealed_address is not None:
            servers["sealed"] = self.sealed_server(settings.sealed_address)
        if settings.federation_address is not None:
            servers["federation"] = self.federation_server(settings.federation_address)
        ports = {name: await server.start() for name, server in servers.items()}
        if settings.metrics_address is not None:
            ports["metrics"] = _serve_metrics(self.registry, settings.metrics_address)
        if settings.ports_file is not None:
            files.replace(settings.ports_file, json.dumps(ports).encode())
        return list(servers.values())

    def main_server(self) -> RpcServer:
        """Return the listener for peers, operators and the controller."""
        settings = self.settings
        limits = ServerLimits(max_concurrent_rpcs=settings.max_connections + 1024)
        server = RpcServer(self.source, MAIN, settings.address, limits=limits, registry=self.registry)
        door = RelayDoor(
            relay=self.relay,
            policy=self.policy,
            exchange=self.exchange,
            hub=self.hub,
            recorder=self.recorder,
            metrics=self.metrics,
            limits=SessionLimits(stall_s=settings.stall_s),
            connect_timeout_s=settings.connect_timeout_s,
        )
        server.add(lambda added, to: added.register(to), door)
        if settings.serve_registry:
            foreign = ForeignRegistries(self.policy, self.channels)
            registry = RegistryServicer(self.policy, self.desk, self.registrations, foreign, self.recorder)
            server.add(registry_pb2_grpc.add_RegistryServicer_to_server, registry)
        status = StatusServicer(self.relay, self.store, self.hub, self.policy, self.metrics)
        server.add(relay_pb2_grpc.add_RelayStatusServicer_to_server, status)
        server.add(
            policy_pb2_grpc.add_PolicyEnforcementServicer_to_server, InForceServicer(lambda: self.link.watch)
        )
        server.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(self.log))
        return server

    def sealed_server(self, address: str) -> RpcServer:
        """Return the listener for senders that say no name."""
        server = RpcServer.bootstrap(self.source, SEALED, address)
        door = SealedDoor(self.policy, self.exchange, self.recorder, self.metrics)
        return server.add(lambda added, to: added.register(to), door)

    def federation_server(self, address: str) -> RpcServer:
        """Return the listener for relays of other trust domains."""
        source = FederatedSource(self.source, self._federated_roots)
        server = RpcServer(source, FederationTable(self.policy), address)
        servicer = FederationServicer(self.policy, self.exchange, self.desk, self.recorder)
        return server.add(federation_pb2_grpc.add_FederationServicer_to_server, servicer)

    def _federated_roots(self) -> bytes:
        rules = self.policy.rules
        return all_roots(rules.federated.values()) if rules is not None else b""

    def _policy_applied(self, rules: Rules) -> None:
        self.recorder.event("policy.applied", version=rules.version, digest=rules.digest)


def _mailboxes(settings: RelaySettings) -> MailboxStore:
    if settings.nats_url is not None:
        return JetStreamMailboxes(
            settings.nats_url,
            replicas=settings.nats_replicas,
            token_file=settings.nats_token_file,
            ca_file=settings.nats_ca_file,
        )
    return SqliteMailboxes(settings.state_dir / "mailboxes.db", sweep_s=settings.sweep_s)


def _take_limits(settings: RelaySettings) -> TakeLimits:
    return TakeLimits(
        caller_per_minute=settings.prekey_caller_per_minute,
        peer_per_minute=settings.prekey_peer_per_minute,
        window_s=settings.prekey_window_s,
        low_water=settings.prekey_low_water,
    )


def _key(path: Path) -> Ed25519PrivateKey:
    """Return a log's own key, made at the first start."""
    with contextlib.suppress(FileNotFoundError):
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    key = Ed25519PrivateKey.generate()
    files.replace(path, key.private_bytes_raw())
    return key


def _serve_metrics(registry: CollectorRegistry, address: str) -> int:
    host, _, port = address.rpartition(":")
    server, _ = start_http_server(int(port), addr=host, registry=registry)
    return int(server.server_port)


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise the one error that ended a TaskGroup, not the group."""
    try:
        yield
    except* KarsError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
