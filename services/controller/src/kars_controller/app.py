"""Wires the controller together; the only module that knows every other.

Order at start: storage, keys, audit log, authority, own identity, listeners (the endpoints are part of
every router's settings), reconcilers, then dev.json (who reads it may connect). Order at the end: not
ready, drain, tasks, audit log, storage. Pods live on.
"""

import asyncio
import logging
from datetime import timedelta

from kars.audit.v1 import audit_pb2_grpc
from kars.governance.v1 import governance_pb2_grpc
from kars.identity.v1 import identity_pb2_grpc
from kars.mesh.v1 import identity_pb2_grpc as mesh_identity_pb2_grpc
from kars.policy.v1 import policy_pb2_grpc
from kars.resource.v1 import resource_pb2_grpc
from kars.sandbox.v1 import sandbox_pb2_grpc
from kars_common import files
from kars_common.audit import AuditLog, verifier_key
from kars_common.audit.service import AuditLogServicer, AuditWitnessServicer
from kars_common.audit.witness import Witness
from kars_common.rpc import RpcServer
from kars_common.spiffe import SpiffeId

from kars_controller import (
    authorization,
    keys,
    listening,
    local_runtimes,
    local_services,
    operator_files,
    providers,
    shipped,
)
from kars_controller.administration import Administration
from kars_controller.api.approvals import ApprovalsServicer
from kars_controller.api.identity import WorkloadIdentityServicer
from kars_controller.api.mesh_identity import MeshIdentityServicer
from kars_controller.api.policy import PolicyDiscoveryServicer
from kars_controller.api.resources import ResourcesServicer
from kars_controller.api.sandboxes import SandboxesServicer
from kars_controller.approvals import ApprovalRegistry, Attachments
from kars_controller.ca import AuthoritySvidSource, CertificateAuthority, JoinTokens
from kars_controller.code_sources import CodeStore
from kars_controller.compile.mesh import RELAY_SUBJECT
from kars_controller.distribution import PolicyPublisher, PolicySessions
from kars_controller.identities import Identities
from kars_controller.mesh import Federation, MeshView, StatementIssuer, StatementKeys
from kars_controller.platforms.base import Platform, SandboxKey
from kars_controller.platforms.local.platform import LocalPlatform
from kars_controller.platforms.local.services import LocalService
from kars_controller.reconcile.engine import Engine
from kars_controller.reconcile.env import TRUST_KEYS_FILE
from kars_controller.reconcile.mesh import MeshKeeper
from kars_controller.reconcile.observing import Observer, Surroundings
from kars_controller.reconcile.plan import RouterMaterial
from kars_controller.reconcile.sandboxes import JoinTokenIssuer, SandboxKeeper
from kars_controller.resources import EventLog, ResourceKey, ResourceStore, deleting
from kars_controller.runtimes import RuntimeCatalog
from kars_controller.settings import ControllerSettings
from kars_controller.storage import Database
from kars_controller.witnessing import DatabaseWitnessStore

_LOG = logging.getLogger(__name__)
_PROVIDERS_POLL_S = 5.0
_STATEMENT_KEYS_S = 60.0
_LONGEST_EXPIRY_WAIT_S = 5.0


class Controller:
    """The object graph of one controller process."""

    def __init__(
        self,
        settings: ControllerSettings,
        *,
        platform: Platform | None = None,
        runtimes: RuntimeCatalog | None = None,
    ) -> None:
        """Open files and build everything; nothing listens before `serve`. Needs a running loop.

        Args:
            settings: what this controller was told.
            platform: what runs the pods; None for the platform that the settings name.
            runtimes: what can be run; None to look for what is installed.
        """
        self.settings = settings
        own, domain = settings.own_dir, settings.trust_domain
        self._database = Database(own / "resources.db")
        self.store = ResourceStore(self._database)
        self.events = EventLog(self._database)
        self._identity = SpiffeId.service(domain, "controller")
        self.audit = AuditLog.open(own / "audit", str(self._identity), keys.load_or_create(own / "audit.key"))
        self.platform: Platform = platform or LocalPlatform(settings.state_dir)
        self._runtimes = runtimes
        self._build_identity()
        self._build_domain()
        self._starts_services = platform is None
        self.relay: LocalService | None = None
        self.started = asyncio.Event()
        self.endpoint = ""
        self.bootstrap_endpoint = ""

    def _build_identity(self) -> None:
        settings, domain = self.settings, self.settings.trust_domain
        self.federation = Federation.read(settings.mesh_federation_file, domain)
        self.mesh_view = MeshView(self.store, domain)
        self.statement_keys = StatementKeys(
            settings.own_dir / "mesh-statement-keys.json",
            domain,
            timedelta(days=settings.mesh_statement_key_days),
            foreign=self.federation.keys,
        )
        self.statements = StatementIssuer(
            self._database, self.statement_keys, self.audit, self._workload_exists
        )
        self._write_mesh_files()
        self.authority = CertificateAuthority.open(settings.own_dir / "ca", domain)
        self.source = AuthoritySvidSource(self.authority, self._identity)
        self.identities = Identities(
            self.authority, JoinTokens(self._database), self.audit, self._workload_exists
        )
        self._operator_source = AuthoritySvidSource(
            self.authority,
            SpiffeId.operator(domain, settings.operator or operator_files.user_name()),
            timedelta(seconds=settings.operator_lifetime_s),
            lambda svid: operator_files.write_identity(settings.state_dir / "cli", svid),
        )

    def _build_domain(self) -> None:
        own = self.settings.own_dir
        self.publisher = PolicyPublisher(self._database, keys.load_or_create(own / "policy-signing.key"))
        self.sessions = PolicySessions(self._touch)
        self.approvals = ApprovalRegistry(self._database)
        self._attachments = Attachments(self.approvals)
        self.witness = Witness(
            f"{self.settings.trust_domain}/svc/controller/witness",
            keys.load_or_create(own / "witness.key"),
            DatabaseWitnessStore(self._database),
        )
        self._engine: Engine | None = None

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping`; the first task that fails ends the rest and is the error raised."""
        try:
            servers = await self._listen()
            engine = await self._build_engine()
            shipped.ensure(self.store)
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self.source.run(), name="own identity"),
                    tasks.create_task(self._operator_source.run(), name="operator identity"),
                    tasks.create_task(self.audit.run(), name="audit checkpoints"),
                    tasks.create_task(engine.run(), name="reconcilers"),
                    tasks.create_task(self._expire_approvals(), name="approval expiry"),
                    tasks.create_task(self._follow_providers(engine), name="providers file"),
                    tasks.create_task(self._tend_statement_keys(engine), name="mesh statement keys"),
                    *(tasks.create_task(service.run(), name="relay service") for service in self._services()),
                ]
                self._announce()
                await stopping.wait()
                _LOG.info("controller stopping", extra={"drain_s": self.settings.drain_s})
                await asyncio.gather(*(server.stop(self.settings.drain_s) for server in servers))
                for task in running:
                    task.cancel()
        finally:
            await self.platform.close()
            await self.audit.close()
            self._database.close()

    async def _listen(self) -> tuple[RpcServer, RpcServer]:
        settings = self.settings
        remembered = listening.remembered(settings.state_dir / "dev.json")
        self.bootstrap_endpoint, bootstrap = await listening.start(
            self._bootstrap_server, settings.bootstrap_address, remembered.bootstrap
        )
        self.endpoint, main = await listening.start(self._main_server, settings.address, remembered.main)
        return main, bootstrap

    async def _build_engine(self) -> Engine:
        if self._runtimes is None:
            self._runtimes = await asyncio.to_thread(local_runtimes.discover, self.settings)
        surroundings = Surroundings(
            runtimes=self._runtimes,
            router=RouterMaterial(
                trust_domain=self.settings.trust_domain,
                controller_endpoint=self.endpoint,
                bootstrap_endpoint=self.bootstrap_endpoint,
                trust_bundle_pem=self.authority.trust_bundle_pem.encode(),
                policy_keys=self.publisher.keys_file,
                witness_key=self._witness_key,
            ),
            read_providers=lambda: providers.read(self.settings.providers_path),
            byo_strict=self.settings.byo_strict_mode,
            code_dir=self.settings.code_dir,
            mesh=self.mesh_view,
            relay_endpoint=self._relay_endpoint,
            mesh_dir=self.settings.mesh_dir,
        )
        observer = Observer(
            store=self.store,
            publisher=self.publisher,
            sessions=self.sessions,
            platform=self.platform,
            surroundings=surroundings,
        )
        keeper = SandboxKeeper(
            store=self.store,
            events=self.events,
            observer=observer,
            publisher=self.publisher,
            sessions=self.sessions,
            platform=self.platform,
            code=CodeStore(self.settings.code_dir),
            tokens=JoinTokenIssuer(issue=self._join_token, revoke=self._forget_workload),
        )
        mesh = MeshKeeper(
            view=self.mesh_view,
            keys=self.statement_keys,
            publisher=self.publisher,
            sessions=self.sessions,
            federation=self.federation,
        )
        self._engine = Engine(self.store, self.events, observer, keeper, self.platform, mesh=mesh)
        return self._engine

    def _services(self) -> list[LocalService]:
        """Return the services that run beside the controller; none where somebody else runs them."""
        if self.settings.relay_endpoint is not None:
            return []
        if self._starts_services and local_services.installed(local_services.RELAY_MODULE):
            self.relay = LocalService(
                self.settings.state_dir / "services" / "relay",
                local_services.relay_plan(
                    trust_domain=self.settings.trust_domain,
                    controller_endpoint=self.endpoint,
                    bootstrap_endpoint=self.bootstrap_endpoint,
                    trust_bundle_pem=self.authority.trust_bundle_pem.encode(),
                    policy_keys=self.publisher.keys_file,
                    witness_key=self._witness_key,
                    federation_address=self.settings.mesh_federation_address,
                ),
                join_token=self._relay_token,
                connected=lambda: self.sessions.answer(RELAY_SUBJECT).connected,
                on_change=self._relay_moved,
            )
            return [self.relay]
        return []

    def _relay_endpoint(self) -> str:
        if self.settings.relay_endpoint is not None:
            return self.settings.relay_endpoint
        return self.relay.endpoint if self.relay is not None else ""

    def _relay_token(self) -> str:
        identity = SpiffeId.service(self.settings.trust_domain, "relay")
        return self.identities.join_token(identity, timedelta(seconds=self.settings.join_token_lifetime_s))

    def _relay_moved(self) -> None:
        if self._engine is not None:
            self._engine.touch_all()

    @property
    def _witness_key(self) -> bytes:
        return verifier_key(self.witness.name, self.witness.public_key, witness=True).encode()

    def _announce(self) -> None:
        self.audit.append("controller.started", {"endpoint": self.endpoint})
        operator_files.write_endpoints(
            self.settings.state_dir / "dev.json",
            endpoint=self.endpoint,
            bootstrap_endpoint=self.bootstrap_endpoint,
            trust_domain=self.settings.trust_domain,
        )
        self.started.set()

    def _bootstrap_server(self, address: str) -> RpcServer:
        server = RpcServer.bootstrap(self.source, authorization.BOOTSTRAP, address)
        identity = WorkloadIdentityServicer(self.identities)
        return server.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, identity)

    def _main_server(self, address: str) -> RpcServer:
        server = RpcServer(self.source, authorization.MAIN, address)
        server.add(
            identity_pb2_grpc.add_WorkloadIdentityServicer_to_server,
            WorkloadIdentityServicer(self.identities),
        )
        server.add(
            resource_pb2_grpc.add_ResourcesServicer_to_server,
            ResourcesServicer(self.store, self.events, Administration(self.store, self.audit)),
        )
        server.add(
            mesh_identity_pb2_grpc.add_MeshIdentityServicer_to_server, MeshIdentityServicer(self.statements)
        )
        server.add(
            policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server,
            PolicyDiscoveryServicer(self.publisher, self.sessions, self.audit),
        )
        server.add(
            governance_pb2_grpc.add_ApprovalsServicer_to_server,
            ApprovalsServicer(self.approvals, self._attachments, self.audit),
        )
        server.add(
            sandbox_pb2_grpc.add_SandboxesServicer_to_server,
            SandboxesServicer(self.store, self.platform, self.sessions, self.audit),
        )
        server.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(self.audit))
        server.add(audit_pb2_grpc.add_AuditWitnessServicer_to_server, AuditWitnessServicer(self.witness))
        return server

    async def _expire_approvals(self) -> None:
        while True:
            next_s = self.approvals.expire()
            # Not longer than a few seconds: one published meanwhile may expire sooner.
            await asyncio.sleep(
                min(_LONGEST_EXPIRY_WAIT_S, next_s if next_s is not None else _LONGEST_EXPIRY_WAIT_S)
            )

    async def _follow_providers(self, engine: Engine) -> None:
        path = self.settings.providers_path
        seen = providers.stamp(path)
        while True:
            # Polled: the file may be on a file system that tells nobody of changes.
            await asyncio.sleep(_PROVIDERS_POLL_S)
            now = providers.stamp(path)
            if now != seen:
                seen = now
                _LOG.info("providers file changed", extra={"path": path.name})
                engine.touch_all()

    async def _tend_statement_keys(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(_STATEMENT_KEYS_S)
            if self.statement_keys.tend():
                _LOG.info("mesh statement keys changed", extra={"keys": len(self.statement_keys.messages())})
                self._write_mesh_files()
                engine.touch_mesh()

    def _write_mesh_files(self) -> None:
        """Write what every agent may read: public keys, so for everybody; replaced as a whole."""
        directory = self.settings.mesh_dir
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.replace(directory / TRUST_KEYS_FILE, self.statement_keys.trust_file(), mode=0o644)

    def _join_token(self, key: SandboxKey) -> str:
        identity = SpiffeId.sandbox(self.settings.trust_domain, *key)
        return self.identities.join_token(identity, timedelta(seconds=self.settings.join_token_lifetime_s))

    def _forget_workload(self, key: SandboxKey) -> None:
        self.identities.revoke(SpiffeId.sandbox(self.settings.trust_domain, *key))
        self.approvals.withdraw_all(key)

    def _touch(self, key: SandboxKey) -> None:
        if self._engine is not None:
            self._engine.touch(key)

    def _workload_exists(self, identity: SpiffeId) -> bool:
        sandbox = identity.sandbox_ref
        if sandbox is None:
            return identity.segments[:1] == ("svc",)
        document = self.store.find(ResourceKey("KarsSandbox", *sandbox))
        return document is not None and not deleting(document)
