"""The link to the rest of kars: identity, policy, approvals, witness, and the server for operators.

Everything here may be absent. Without a controller the router enforces the last
policy that it was given; without any, it denies.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kars.audit.v1 import audit_pb2, audit_pb2_grpc
from kars.budget.v1 import budget_pb2_grpc
from kars.inference.v1 import inference_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.audit import AuditLog, AuditLogServicer, WitnessedLog, parse_verifier_key, submit_over
from kars_common.errors import FailedPreconditionError, InvalidInputError, KarsError, UnavailableError
from kars_common.identity import ControllerSvidSource, FileSvidSource, JoinToken, Svid, SvidSource
from kars_common.policy import PolicyWatch, load_keys
from kars_common.rpc import PeerChannel, RpcServer, mapped_errors
from kars_common.spiffe import SpiffeId

from kars_router.api.rpc import BudgetsServicer, ModelsServicer, PolicyEnforcementServicer
from kars_router.approvals.attach import ControllerBoard
from kars_router.approvals.holds import HoldRegistry
from kars_router.authorization import TABLE
from kars_router.pipeline.door import Door
from kars_router.providers.config import ProviderRegistry
from kars_router.providers.health import Health
from kars_router.settings import RouterSettings

_log = logging.getLogger(__name__)
_STOP_GRACE_S = 2.0


class NoIdentity:
    """The source of a router that was given no way to get an identity."""

    def current(self) -> Svid:
        """Refuse.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError("svid_unavailable", "this router was given no source of identity")

    async def wait_changed(self, previous: Svid | None) -> Svid:  # noqa: ARG002 - the Protocol's
        """Wait for ever."""
        await asyncio.Event().wait()
        return self.current()

    async def run(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


@dataclass(frozen=True, kw_only=True)
class LinkParts:
    """What the link shows and feeds."""

    door: Door
    log: AuditLog
    holds: HoldRegistry
    providers: ProviderRegistry
    health: Health
    apply: Callable[[policy_pb2.PolicyBundle, bytes], None]


class ControllerLink:
    """Owns every connection between this router and the rest of kars."""

    def __init__(self, settings: RouterSettings, parts: LinkParts) -> None:
        """Build; nothing is sent before `start`.

        Raises:
            InvalidInputError: policy keys or witness key cannot be read.
        """
        self._settings = settings
        self._parts = parts
        self._source = _source(settings)
        self._controller = SpiffeId.service(settings.trust_domain, "controller")
        # Never called without an endpoint: `start` leaves those tasks out.
        endpoint = settings.controller_endpoint or "127.0.0.1:0"
        self._channel = PeerChannel(self._source, endpoint, self._controller.dns_name)
        self._keys = load_keys(settings.policy_keys_file)
        self.watch = self._new_watch("")
        self._server: RpcServer | None = None
        self._witness = self._witnessed_log()

    @property
    def source(self) -> SvidSource:
        """Whom this router proves to be."""
        return self._source

    @property
    def controller_channel(self) -> PeerChannel:
        """The channel to the controller."""
        return self._channel

    @property
    def has_identity(self) -> bool:
        """True when an SVID is held, or none was ever configured."""
        if isinstance(self._source, NoIdentity):
            return True
        try:
            self._source.current()
        except KarsError:
            return False
        return True

    def load_policy(self) -> None:
        """Bring the last known good policy into force, if there is one."""
        self.watch.load()

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start the long-running tasks."""
        tasks = [group.create_task(self._source.run(), name="identity")]
        if not isinstance(self._source, NoIdentity):
            tasks.append(group.create_task(self._run(), name="controller link"))
        return tasks

    async def stop(self) -> None:
        """End the server and close connections."""
        if self._server is not None:
            await self._server.stop(_STOP_GRACE_S)
        await self._channel.close()

    async def _run(self) -> None:
        """Wait for an identity; then serve operators and follow the controller."""
        await self._source.wait_changed(None)
        port = await self._serve()
        if self._settings.controller_endpoint is None:
            return
        host = self._settings.admin_address.rpartition(":")[0]
        self.watch = self._renewed_watch(f"{host}:{port}")
        door = self._parts.door
        board = ControllerBoard(self._channel, door.namespace, door.name, self._parts.holds)
        self._parts.holds.attach(door.sandbox, board)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch.run(), name="policy watch")
            group.create_task(board.run(), name="approvals")
            if self._witness is not None:
                group.create_task(self._run_witness(self._witness), name="audit witness")

    async def _serve(self) -> int:
        parts = self._parts
        server = RpcServer(self._source, TABLE, self._settings.admin_address)
        doors = [parts.door]
        server.add(
            policy_pb2_grpc.add_PolicyEnforcementServicer_to_server,
            PolicyEnforcementServicer(doors, lambda: self.watch),
        )
        server.add(budget_pb2_grpc.add_BudgetsServicer_to_server, BudgetsServicer(doors))
        server.add(
            inference_pb2_grpc.add_ModelsServicer_to_server,
            ModelsServicer(doors, parts.providers, parts.health),
        )
        server.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(parts.log))
        port = await server.start()
        self._server = server
        return port

    def _new_watch(self, admin_endpoint: str) -> PolicyWatch:
        settings = self._settings
        return PolicyWatch(
            self._channel,
            (settings.namespace, settings.sandbox),
            self._keys,
            settings.state_dir / "policy",
            self._parts.apply,
            admin_endpoint=admin_endpoint,
        )

    def _renewed_watch(self, admin_endpoint: str) -> PolicyWatch:
        """Return a watch that knows the admin port, with the kept policy in force as before."""
        watch = self._new_watch(admin_endpoint)
        watch.load()
        return watch

    def _witnessed_log(self) -> WitnessedLog | None:
        path = self._settings.witness_key_file
        if path is None:
            return None
        try:
            name, key = parse_verifier_key(path.read_text().strip())
        except OSError as exc:
            raise InvalidInputError("witness_key_invalid", f"cannot read {path}") from exc
        stub: Any = self._channel.stub(audit_pb2_grpc.AuditWitnessStub)

        async def call(request: audit_pb2.WitnessCheckpointRequest) -> audit_pb2.WitnessCheckpointResponse:
            with mapped_errors():
                response: audit_pb2.WitnessCheckpointResponse = await stub.WitnessCheckpoint(request)
                return response

        return WitnessedLog(self._parts.log, submit_over(call), name, key)

    async def _run_witness(self, witness: WitnessedLog) -> None:
        try:
            await witness.run()
        except FailedPreconditionError as exc:
            # The log contradicts what the witness saw: a fact for people. Serving on destroys no evidence.
            _log.error("the witness refuses this log", extra={"reason": exc.reason})


def _source(settings: RouterSettings) -> SvidSource:
    if settings.svid_dir is not None:
        return FileSvidSource(settings.svid_dir)
    if settings.bootstrap_endpoint is None:
        return NoIdentity()
    endpoint, roots, token = (
        settings.controller_endpoint,
        settings.trust_bundle_file,
        settings.join_token_file,
    )
    if endpoint is None or roots is None or token is None:
        needed = "CONTROLLER_ENDPOINT, TRUST_BUNDLE_FILE and JOIN_TOKEN_FILE"
        raise InvalidInputError("settings_invalid", f"BOOTSTRAP_ENDPOINT needs {needed}")
    return ControllerSvidSource(
        SpiffeId.sandbox(settings.trust_domain, settings.namespace, settings.sandbox),
        bootstrap_endpoint=settings.bootstrap_endpoint,
        controller_endpoint=endpoint,
        trust_bundle_file=roots,
        attestation=JoinToken(token),
        state_directory=settings.state_dir / "svid",
    )
