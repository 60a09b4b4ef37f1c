"""Wires the controller together; the only module that knows every other.

Order at start: storage, keys, audit log, authority, own identity, domain, listeners, then dev.json (who
reads it may connect). Order at the end: not ready, drain, tasks, audit log, storage. Pods live on.
"""

import asyncio
import logging
from datetime import timedelta

from kars.audit.v1 import audit_pb2_grpc
from kars.identity.v1 import identity_pb2_grpc
from kars.resource.v1 import resource_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.audit.service import AuditLogServicer
from kars_common.rpc import RpcServer
from kars_common.spiffe import SpiffeId

from kars_controller import authorization, keys, operator_files
from kars_controller.administration import Administration
from kars_controller.api.identity import WorkloadIdentityServicer
from kars_controller.api.resources import ResourcesServicer
from kars_controller.ca import AuthoritySvidSource, CertificateAuthority, JoinTokens
from kars_controller.identities import Identities
from kars_controller.resources import EventLog, ResourceKey, ResourceStore, deleting
from kars_controller.settings import ControllerSettings
from kars_controller.storage import Database

_LOG = logging.getLogger(__name__)


class Controller:
    """The object graph of one controller process."""

    def __init__(self, settings: ControllerSettings) -> None:
        """Open files and build everything; nothing listens before `serve`. Needs a running loop."""
        self.settings = settings
        own, domain = settings.own_dir, settings.trust_domain
        self._database = Database(own / "resources.db")
        self.store = ResourceStore(self._database)
        self.events = EventLog(self._database)
        identity = SpiffeId.service(domain, "controller")
        self.audit = AuditLog.open(
            own / "audit", f"{domain}{identity.path}", keys.load_or_create(own / "audit.key")
        )
        self.authority = CertificateAuthority.open(own / "ca", domain)
        self.source = AuthoritySvidSource(self.authority, identity)
        self.identities = Identities(
            self.authority, JoinTokens(self._database), self.audit, self._workload_exists
        )
        self._operator_source = AuthoritySvidSource(
            self.authority,
            SpiffeId.operator(domain, settings.operator or operator_files.user_name()),
            timedelta(seconds=settings.operator_lifetime_s),
            lambda svid: operator_files.write_identity(settings.state_dir / "cli", svid),
        )
        self._bootstrap = RpcServer.bootstrap(
            self.source, authorization.BOOTSTRAP, settings.bootstrap_address
        )
        self._main = RpcServer(self.source, authorization.MAIN, settings.address)
        self._add_servicers()

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping`; the first task that fails ends the rest and is the error raised."""
        try:
            await self._start()
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self.source.run(), name="own identity"),
                    tasks.create_task(self._operator_source.run(), name="operator identity"),
                    tasks.create_task(self.audit.run(), name="audit checkpoints"),
                ]
                await stopping.wait()
                _LOG.info("controller stopping", extra={"drain_s": self.settings.drain_s})
                await asyncio.gather(
                    self._main.stop(self.settings.drain_s), self._bootstrap.stop(self.settings.drain_s)
                )
                for task in running:
                    task.cancel()
        finally:
            await self._close()

    async def _start(self) -> None:
        bootstrap_port = await self._bootstrap.start()
        port = await self._main.start()
        self.endpoint = _endpoint(self.settings.address, port)
        self.bootstrap_endpoint = _endpoint(self.settings.bootstrap_address, bootstrap_port)
        self.audit.append("controller.started", {"endpoint": self.endpoint})
        operator_files.write_endpoints(
            self.settings.state_dir / "dev.json",
            endpoint=self.endpoint,
            bootstrap_endpoint=self.bootstrap_endpoint,
            trust_domain=self.settings.trust_domain,
        )

    async def _close(self) -> None:
        await self.audit.close()
        self._database.close()

    def _add_servicers(self) -> None:
        identity = WorkloadIdentityServicer(self.identities)
        self._bootstrap.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, identity)
        self._main.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, identity)
        administration = Administration(self.store, self.audit)
        self._main.add(
            resource_pb2_grpc.add_ResourcesServicer_to_server,
            ResourcesServicer(self.store, self.events, administration),
        )
        self._main.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(self.audit))

    def _workload_exists(self, identity: SpiffeId) -> bool:
        sandbox = identity.sandbox_ref
        if sandbox is None:
            return identity.segments[:1] == ("svc",)
        document = self.store.find(ResourceKey("KarsSandbox", *sandbox))
        return document is not None and not deleting(document)


def _endpoint(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"
