"""Wiring: builds the object graph once, runs its tasks, ends them in order.

The only module that knows every other. Start: state, audit log, ledger, last
known good policy, doors; the controller is not waited for. End: doors stop
accepting and drain, then the admin server, then a snapshot, then the log.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
from pathlib import Path as FilePath

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.policy.v1 import policy_pb2
from kars_common import files, processes, telemetry
from kars_common.audit import AuditLog
from kars_common.errors import FailedPreconditionError, InvalidInputError, UnavailableError
from kars_common.policy import digest
from kars_common.spiffe import SpiffeId

from kars_router.api.app import DoorApp
from kars_router.api.chat import ChatEndpoint
from kars_router.api.evaluate import EvaluateEndpoint
from kars_router.api.mesh import MeshEndpoints
from kars_router.api.server import DoorServer, open_door
from kars_router.approvals.holds import HoldRegistry
from kars_router.audit.recorder import CallRecorder
from kars_router.budget.estimate import Estimator
from kars_router.budget.gate import ReserveGate
from kars_router.budget.journal import LedgerJournal, LedgerJournalError
from kars_router.controller import ControllerLink, LinkParts
from kars_router.governance.gate import DecideGate, ToolJudge
from kars_router.guardrails.gate import GuardInputGate, GuardOutputGate
from kars_router.guardrails.redaction import SecretScanner
from kars_router.limits.gate import IdentifyGate, RateLimitGate
from kars_router.mesh.access import MeshAccess
from kars_router.mesh.bridge import Bridge
from kars_router.mesh.gate import MeshDispatchGate, may_receive
from kars_router.mesh.link import MeshLink
from kars_router.mesh.metrics import MeshMetrics
from kars_router.mesh.stream import BridgeParts
from kars_router.metrics import RouterMetrics
from kars_router.pipeline.door import Door, DoorDefaults
from kars_router.pipeline.path import Path
from kars_router.pipeline.policy import CompiledPolicy
from kars_router.pipeline.verdicts import Deny
from kars_router.providers.config import Provider, ProviderConfigError, ProviderRegistry
from kars_router.providers.gate import DispatchGate
from kars_router.providers.health import Health
from kars_router.providers.pool import PooledUpstream
from kars_router.providers.upstream import Upstream
from kars_router.settings import RouterSettings

_log = logging.getLogger(__name__)
_SNAPSHOT_S = 30.0


class RouterApp:
    """One router process with one door."""

    def __init__(self, settings: RouterSettings) -> None:
        """Remember the settings; `run` builds and serves."""
        self._settings = settings
        self._scanner = SecretScanner()
        self._secrets: set[str] = set()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code.

        Raises:
            KarsError: state cannot be used; without audit and ledger nothing is served.
        """
        settings = self._settings
        log = self._open_log()
        try:
            self._build(settings, log)
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            door_socket = open_door(fd=settings.door_fd, address=settings.door_address)
            await self._serve(door_socket, stop)
        finally:
            await log.close()
        return 0

    def _build(self, settings: RouterSettings, log: AuditLog) -> None:
        self.log = log
        self.recorder = CallRecorder(log)
        self.registry = telemetry.process_registry()
        self.metrics = RouterMetrics(self.registry)
        self.door = Door(namespace=settings.namespace, name=settings.sandbox, defaults=_defaults(settings))
        self.metrics.watch(self.door)
        self.journal = LedgerJournal(
            settings.state_dir / "ledger", log, {self.door.sandbox: self.door.ledger}
        )
        try:
            abandoned = self.journal.recover()
        except LedgerJournalError as exc:
            raise FailedPreconditionError(exc.reason, str(exc)) from exc
        self.recorder.event("router.started", {"sandbox": self.door.sandbox, "abandoned": abandoned})
        self.providers = ProviderRegistry(
            settings.providers_file, on_secrets=self._learn_secrets, on_event=self._provider_event
        )
        try:
            self.providers.load()
        except ProviderConfigError as exc:
            # Served all the same: calls are refused with a reason until the file is right.
            _log.error("providers cannot be used", extra={"problem": str(exc)})
            self._provider_event("providers.refused", {"message": str(exc)})
        self.health = Health()
        self.holds = HoldRegistry(
            self.recorder, expiry_s=settings.approval_timeout_s, max_holds=settings.max_holds
        )
        self.mesh_dispatch = MeshDispatchGate(self.recorder)
        self.path = self._build_path(settings)
        self.link = ControllerLink(
            settings,
            LinkParts(
                door=self.door,
                log=log,
                holds=self.holds,
                providers=self.providers,
                health=self.health,
                apply=self.apply,
            ),
        )
        self._build_mesh(settings)

    def _build_mesh(self, settings: RouterSettings) -> None:
        self.mesh_link = MeshLink(
            self.link.source, self.link.controller_channel, settings.trust_domain, self._mesh_access
        )
        redact, metrics = self.log.redactor.redact_text, MeshMetrics(self.registry, self.door.sandbox)
        self.bridge = Bridge(
            BridgeParts(
                open_relay=self.mesh_link.relay,
                may_receive=functools.partial(may_receive, self.door, redact),
                records=self.recorder,
                sandbox=self.door.sandbox,
                on_frame=metrics.frame,
            )
        )

    def _mesh_access(self) -> MeshAccess | None:
        return self.door.policy.mesh if self.door.policy is not None else None

    def _build_path(self, settings: RouterSettings) -> Path:
        redact = self.log.redactor.redact_text
        judge = ToolJudge(redact)
        estimator = Estimator(
            bytes_per_token=settings.prompt_bytes_per_token, default_output=settings.default_max_output_tokens
        )
        self.dispatch = DispatchGate(
            self.providers,
            functools.partial(_open_upstream, settings),
            self.health,
            redact=redact,
            on_attempt=self.metrics.attempt,
        )
        output = GuardOutputGate(
            scanner=lambda: self._scanner,
            judge=judge,
            durability=self.recorder,
            on_redaction=lambda kind: self.metrics.redactions.labels(kind).inc(),
        )
        return Path(
            entry=[
                IdentifyGate(),
                RateLimitGate(),
                DecideGate(redact),
                ReserveGate(estimator),
                GuardInputGate(),
            ],
            after=[self.dispatch, self.mesh_dispatch, output],
            recorder=self.recorder,
            holds=self.holds,
            on_end=self.metrics.ended,
        )

    def door_app(self) -> DoorApp:
        """Return the ASGI application of the door."""
        return DoorApp(
            self.door,
            chat=ChatEndpoint(self.door, self.path),
            evaluate=EvaluateEndpoint(self.door, self.path),
            ready=self.missing,
            metrics=lambda: (
                telemetry.render_metrics(self.registry),
                telemetry.METRICS_CONTENT_TYPE.encode(),
            ),
            on_refused=self._refused,
            mesh=MeshEndpoints(self.door, self.path, self.bridge, self.mesh_link),
        )

    def missing(self) -> list[str]:
        """Return what readiness still lacks."""
        found = []
        if self.door.policy is None:
            found.append("no policy is in force")
        if not self.link.has_identity:
            found.append("no identity")
        if not self.recorder.writable:
            found.append("the audit log is not writable")
        return found

    def apply(self, bundle: policy_pb2.PolicyBundle, payload: bytes) -> None:
        """Compile a verified bundle and put it in force.

        Raises:
            PolicyCompileError: it must be refused.
        """
        name = digest(payload)
        if self.door.policy is not None and self.door.policy.digest == name:
            return  # in force already: a second watch reads the kept bundle again
        policy = CompiledPolicy.compile(bundle, payload, name)
        self.recorder.event(
            "policy.applied",
            {"sandbox": self.door.sandbox, "version": policy.version, "digest": policy.digest},
        )
        self.door.enforce(policy)

    async def _serve(self, door_socket: socket.socket, stop: asyncio.Event) -> None:
        server = DoorServer(
            self.door_app(),
            drain_s=self._settings.drain_s,
            request_timeout_s=self._settings.request_timeout_s,
            open_files=processes.raise_open_files(),
        )
        self.link.load_policy()
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._checkpoints(), name="audit checkpoints"),
                group.create_task(self._snapshots(), name="ledger snapshots"),
                *self.link.start(group),
            ]
            serving = group.create_task(server.run_on(door_socket), name="door")
            await asyncio.wait(
                {serving, group.create_task(stop.wait(), name="stop signal")},
                return_when=asyncio.FIRST_COMPLETED,
            )
            _log.info("router stops")
            stop.set()
            server.stop()
            self.bridge.close()  # a deliver that goes on for ever would hold up the drain
            await serving
            await self.mesh_link.close()
            await self.link.stop()
            for task in background:
                task.cancel()
        await self.dispatch.close()
        self.recorder.event("router.stopped", {"sandbox": self.door.sandbox})
        await self.journal.save()

    async def _checkpoints(self) -> None:
        try:
            await self.log.run()
        except UnavailableError as exc:
            # The door stays open to say so: every call is refused, and readiness names the reason.
            _log.error("the audit log cannot be written", extra={"reason": exc.reason})

    async def _snapshots(self) -> None:
        saved = -1
        while True:
            await asyncio.sleep(_SNAPSHOT_S)
            if self.log.size != saved:
                saved = self.log.size
                await self.journal.save()

    async def _refused(self, door: Door, denial: Deny, path: str) -> None:
        """Record a request that never became a call (thinned); it was answered already."""
        self.metrics.refused_request(door, denial.status)
        self.recorder.refused(denial, {"sandbox": door.sandbox, "kind": "request", "path": path[:128]})

    def _learn_secrets(self, secrets: list[str]) -> None:
        for secret in secrets:
            with contextlib.suppress(InvalidInputError):  # too short to be searched for in text
                self.log.redactor.register(secret)
        # Old keys stay: an answer in flight may still carry one.
        self._secrets |= set(secrets)
        self._scanner = SecretScanner(sorted(self._secrets))

    def _provider_event(self, kind: str, fields: dict[str, str]) -> None:
        self.recorder.event(kind, {"sandbox": self.door.sandbox, **fields})

    def _open_log(self) -> AuditLog:
        settings = self._settings
        directory = settings.state_dir / "audit"
        identity = SpiffeId.sandbox(settings.trust_domain, settings.namespace, settings.sandbox)
        return AuditLog.open(directory, str(identity), _audit_key(settings.state_dir / "audit-signing.key"))


def _audit_key(path: FilePath) -> Ed25519PrivateKey:
    """Return the log's own key, made at the first start."""
    with contextlib.suppress(FileNotFoundError):
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    key = Ed25519PrivateKey.generate()
    files.replace(path, key.private_bytes_raw())
    return key


def _defaults(settings: RouterSettings) -> DoorDefaults:
    return DoorDefaults(
        requests_per_second=settings.requests_per_second,
        burst=settings.burst,
        max_concurrent=settings.max_concurrent,
        queue_limit=settings.queue_limit,
        queue_wait_s=settings.queue_wait_s,
        max_request_bytes=settings.max_request_bytes,
        max_response_bytes=settings.max_response_bytes,
    )


def _open_upstream(settings: RouterSettings, provider: Provider) -> Upstream:
    return PooledUpstream(
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.read_timeout_s,
        total_timeout_s=settings.total_timeout_s,
        ca_pem=provider.ca_pem,
    )
