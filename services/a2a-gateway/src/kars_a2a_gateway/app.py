"""Wiring: builds the object graph once, runs its tasks, ends them in order.

The only module that knows every other. Start: state, audit log, database, last known good policy, doors;
neither controller nor agents are waited for. End: doors stop accepting and drain, then following ends (tasks
go on at their agents), then pushes, database and log.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import time
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.a2a.v1 import delivery_pb2
from kars.policy.v1 import policy_pb2
from kars_common import files, telemetry
from kars_common.audit import AuditLog
from kars_common.errors import InvalidInputError, UnavailableError

from kars_a2a_gateway.api.connections import PublicServer, listen
from kars_a2a_gateway.api.grpc_door import GrpcDoor
from kars_a2a_gateway.api.health import HealthApp
from kars_a2a_gateway.api.jsonrpc import JsonRpc
from kars_a2a_gateway.api.public import PublicApp
from kars_a2a_gateway.api.rest import Rest
from kars_a2a_gateway.api.tls import TlsFiles
from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.callers.authenticator import Authenticator
from kars_a2a_gateway.callers.key_sets import KeySets
from kars_a2a_gateway.callers.principals import Principal, PrincipalKind
from kars_a2a_gateway.callers.tokens import TokenVerifier
from kars_a2a_gateway.cards.key_ring import KeyRing
from kars_a2a_gateway.cards.shelf import Shelf
from kars_a2a_gateway.controller import ControllerLink
from kars_a2a_gateway.inside.delivery import Delivery, envelope
from kars_a2a_gateway.limits.rates import Rates
from kars_a2a_gateway.limits.streams import StreamSlots
from kars_a2a_gateway.metrics import GatewayMetrics
from kars_a2a_gateway.operations.admission import Admission, call_id
from kars_a2a_gateway.operations.dispatch import Dispatcher
from kars_a2a_gateway.operations.pushes import Pushes
from kars_a2a_gateway.operations.reading import Reader
from kars_a2a_gateway.operations.sending import Sender
from kars_a2a_gateway.outgoing.client import GuardedClient
from kars_a2a_gateway.outgoing.guard import Guard
from kars_a2a_gateway.policy.compiler import compile_bundle
from kars_a2a_gateway.policy.exposures import EMPTY, Exposure, GatewayTable
from kars_a2a_gateway.push.delivery import DeliverySettings, PushDelivery
from kars_a2a_gateway.settings import GatewaySettings
from kars_a2a_gateway.storage.postgres import open_postgres
from kars_a2a_gateway.storage.scripts import Database
from kars_a2a_gateway.storage.sqlite import SqliteDatabase
from kars_a2a_gateway.tasks import index
from kars_a2a_gateway.tasks.owners import Owner
from kars_a2a_gateway.tasks.pages import Pager
from kars_a2a_gateway.tasks.runs import Runs
from kars_a2a_gateway.wire.reading import MessageBounds

_LOG = logging.getLogger(__name__)
_REFRESH_S = 1.0
_RETENTION_S = 600.0


class GatewayApp:
    """One gateway process."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Remember the settings; `run` builds and serves."""
        self._settings = settings
        self.table: GatewayTable = EMPTY
        self.worker = secrets.token_hex(8)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code.

        Raises:
            KarsError: state, keys or addresses cannot be used.
        """
        log = self._open_log()
        try:
            database = await self._open_database()
            try:
                await self._build(log, database)
                await self._serve()
            finally:
                await database.close()
        finally:
            await log.close()
        return 0

    async def _build(self, log: AuditLog, database: Database) -> None:
        settings = self._settings
        self._log = log
        self._database = database
        self.recorder = Recorder(log)
        self.registry = telemetry.process_registry()
        self.metrics = GatewayMetrics(self.registry)
        self.link = ControllerLink(settings, log, self._apply)
        self.ring = KeyRing(settings.card_keys_dir, settings.state_dir)
        self.tls = self._tls()
        guard = Guard(allow_loopback=settings.allow_loopback_targets)
        self.client = GuardedClient(guard)
        self.delivery = Delivery(self.link.source, settings.trust_domain, settings.agent_timeout_s)
        self.shelf = Shelf(
            database,
            self.delivery,
            self.ring,
            lambda exposure: self._own_envelope(exposure, None),
            public_url=settings.public_url,
            grpc_target=settings.public_grpc_target,
            max_age_s=settings.card_max_age_s,
        )
        self.pushes = PushDelivery(
            database,
            self.client,
            self.recorder,
            lambda: (self.ring.active, self.shelf.jku),
            DeliverySettings(
                timeout_s=settings.push_timeout_s,
                max_age_s=settings.push_max_age_s,
                first_retry_s=settings.push_first_retry_s,
            ),
            worker=self.worker,
            shared=settings.database_url is not None,
        )
        self.runs = Runs(
            database,
            self.delivery,
            self.recorder,
            self._find_exposure,
            self._own_envelope,
            worker=self.worker,
            shared=settings.database_url is not None,
            now_ns=time.time_ns,
            pushes_queued=self.pushes.wake,
        )
        await self._build_doors(guard)
        self._watch()
        self.link.load_policy()

    async def _build_doors(self, guard: Guard) -> None:
        settings, database = self._settings, self._database
        authenticator = Authenticator(TokenVerifier(KeySets(self.client)), settings.public_url)
        admission = Admission(
            lambda: self.table, authenticator, Rates(), recorder=self.recorder, metrics=self.metrics
        )
        self.slots = StreamSlots(settings.max_streams)
        page_key = await database.run(lambda: index.setting("page key", secrets.token_bytes(32)))
        registrations = Pushes(database, self.runs, self.recorder, guard)
        sender = Sender(
            database,
            self.runs,
            self.shelf,
            registrations,
            recorder=self.recorder,
            slots=self.slots,
            blocking_timeout_s=settings.blocking_timeout_s,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )
        reader = Reader(
            database,
            self.runs,
            self.shelf,
            self.delivery,
            recorder=self.recorder,
            pager=Pager(page_key),
            slots=self.slots,
        )
        bounds = MessageBounds(max_json_depth=settings.max_json_depth, max_parts=settings.max_parts)
        dispatcher = Dispatcher(sender, reader, registrations, self.shelf, bounds)
        app = PublicApp(
            admission,
            JsonRpc(admission, dispatcher),
            Rest(admission, dispatcher),
            self.shelf,
            self.ring,
            table=lambda: self.table,
            public_url=settings.public_url,
            card_max_age_s=settings.card_max_age_s,
        )
        self.http = PublicServer(
            app,
            tls=self.tls.context if self.tls is not None else None,
            drain_s=settings.drain_s,
            request_timeout_s=settings.request_timeout_s,
            max_connections=settings.max_connections,
        )
        self.health = PublicServer(
            HealthApp(self.registry, self._missing),
            tls=None,
            drain_s=1,
            request_timeout_s=5,
            max_connections=64,
        )
        self.grpc = GrpcDoor(
            admission, dispatcher, lambda: self.table.root_agent, max_rpcs=settings.max_streams + 1024
        )

    async def _serve(self) -> None:
        settings = self._settings
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            public, health = listen(settings.http_address), listen(settings.health_address)
            ports = {"http": public.getsockname()[1], "health": health.getsockname()[1]} | self._listen_grpc()
        except OSError as exc:
            raise UnavailableError("address_unavailable", f"cannot listen: {exc.strerror or exc}") from exc
        self._announce(ports)
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(self.link.run(), name="controller link"),
                group.create_task(self.runs.run(), name="leases"),
                group.create_task(self.pushes.run(), name="pushes"),
                group.create_task(self._log.run(), name="audit checkpoints"),
                group.create_task(self._refresh(), name="refresh keys and certificates"),
                group.create_task(self._forget(), name="forget old tasks"),
            ]
            doors = [
                group.create_task(self.http.run_on(public), name="http door"),
                group.create_task(self.health.run_on(health), name="health door"),
            ]
            await self.grpc.start()
            await stop.wait()
            await self._end(running, doors)

    async def _end(self, running: "list[asyncio.Task[None]]", doors: "list[asyncio.Task[None]]") -> None:
        self.http.stop()
        await self.grpc.stop(min(self._settings.drain_s, 2.0))
        await self.runs.close()
        self.health.stop()
        await asyncio.gather(*doors, return_exceptions=True)
        await self.link.stop()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.client.close()
        await self.delivery.close()

    def _listen_grpc(self) -> dict[str, int]:
        settings, ports = self._settings, {}
        credentials = mutual = None
        if self.tls is not None:
            pair = self.tls.certificate
            credentials = grpc.ssl_server_credentials([pair])
            if settings.grpc_mtls_address is not None:
                if not self.tls.authorities:
                    raise InvalidInputError("settings_invalid", "GRPC_MTLS_ADDRESS needs CLIENT_CA_FILE")
                mutual = grpc.ssl_server_credentials(
                    [pair], root_certificates=self.tls.authorities, require_client_auth=True
                )
        if settings.grpc_address is not None:
            ports["grpc"] = self.grpc.listen(settings.grpc_address, credentials)
        if settings.grpc_mtls_address is not None:
            ports["grpc_mtls"] = self.grpc.listen(settings.grpc_mtls_address, mutual)
        return ports

    def _announce(self, ports: dict[str, int]) -> None:
        """Write the ports down for whoever started us with port 0, and say what is unusual."""
        files.replace(self._settings.state_dir / "ports.json", json.dumps(ports).encode())
        self.recorder.event("started", {"ports": ports, "worker": self.worker})
        if self._settings.plaintext:
            _LOG.warning("serving without TLS")
        if self._settings.allow_loopback_targets:
            _LOG.warning("pushes and key sets may go to loopback; for conformance runs only")
            self.recorder.event("loopback_targets_allowed", {})

    def _apply(self, bundle: policy_pb2.PolicyBundle, _payload: bytes) -> None:
        table = compile_bundle(bundle, self._settings)
        if self.tls is not None:
            self.tls.accept(table.client_authorities)
        self.table = table
        self.recorder.event("policy_in_force", {"version": table.version, "agents": len(table.exposures)})

    def _find_exposure(self, agent: str) -> Exposure | None:
        # Revoked agents are not followed either: what policy closes is closed both ways.
        exposure = self.table.exposures.get(agent)
        return exposure if exposure is not None and exposure.enabled else None

    def _own_envelope(self, exposure: Exposure, owner: Owner | None) -> delivery_pb2.Envelope:
        """Return the envelope of a call that the gateway makes by itself, for an owner or for nobody."""
        name = owner.principal if owner is not None else "gateway"
        kind, _, _ = name.partition(":")
        known = {member.value: member for member in PrincipalKind}.get(kind, PrincipalKind.ANONYMOUS)
        principal = Principal(kind=known, id=name)
        return envelope(exposure, principal, call_id(time.time()))

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            if self.tls is not None:
                with contextlib.suppress(OSError):
                    self.tls.refresh()
            if self.ring.refresh():
                self.recorder.event("card_key_active", {"kid": self.ring.active.kid})
            await self.delivery.keep_only({(e.agent, e.endpoint) for e in self.table.exposures.values()})

    async def _forget(self) -> None:
        while True:
            before_s = time.time() - self._settings.task_retention_s
            with contextlib.suppress(UnavailableError):
                await self._database.run(lambda: index.forget_old(int(before_s * 1e9), int(before_s * 1e3)))  # noqa: B023  # run before the next turn
            await asyncio.sleep(_RETENTION_S)

    def _missing(self) -> list[str]:
        missing = []
        if self.table is EMPTY:
            missing.append("policy")
        if self._log.failed:
            missing.append("audit log")
        try:
            self.link.source.current()
        except UnavailableError:
            missing.append("identity")
        return missing

    def _watch(self) -> None:
        self.metrics.watch(
            "kars_a2a_open_streams", "Streams that callers hold open", lambda: self.slots.total
        )
        self.metrics.watch(
            "kars_a2a_followed_tasks", "Tasks that this process follows", lambda: self.runs.followed
        )

    def _tls(self) -> TlsFiles | None:
        settings = self._settings
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        try:
            return TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.client_ca_file)
        except OSError as exc:  # ssl.SSLError too
            raise InvalidInputError(
                "tls_files_invalid", "certificate, key or client authorities are not usable"
            ) from exc

    async def _open_database(self) -> Database:
        if self._settings.database_url is not None:
            return await open_postgres(self._settings.database_url.get_secret_value())
        return await asyncio.to_thread(SqliteDatabase, self._settings.state_dir / "tasks.sqlite")

    def _open_log(self) -> AuditLog:
        state = self._settings.state_dir
        key = _signing_key(state / "audit.key")
        return AuditLog.open(state / "audit", origin=f"{self._settings.trust_domain}/a2a-gateway", signer=key)


def _signing_key(path: Path) -> Ed25519PrivateKey:
    """Return the key of the audit log, made at the first start."""
    if not path.exists():
        files.replace(path, Ed25519PrivateKey.generate().private_bytes_raw())
    return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
