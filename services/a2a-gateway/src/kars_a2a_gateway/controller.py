"""The link to the rest of kars: identity, policy, and the server for operators. All of it may be absent.

Without a controller the gateway enforces the last policy that it was given; without any, nothing exists.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from kars.audit.v1 import audit_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.audit import AuditLog, AuditLogServicer
from kars_common.errors import InvalidInputError
from kars_common.identity import ControllerSvidSource, FileSvidSource, JoinToken, SvidSource
from kars_common.policy import InForceState, PolicyWatch, load_keys
from kars_common.rpc import PeerChannel, RpcServer
from kars_common.spiffe import SpiffeId

from kars_a2a_gateway.authorization import TABLE
from kars_a2a_gateway.settings import GatewaySettings

SERVICE = "a2a-gateway"
RESERVED = ("kars-system", SERVICE)
"""The reserved sandbox name under which the gateway's bundle travels (ADR 0041)."""
_STOP_GRACE_S = 2.0


class ControllerLink:
    """Owns identity, policy watch and admin server."""

    def __init__(
        self,
        settings: GatewaySettings,
        log: AuditLog,
        apply: Callable[[policy_pb2.PolicyBundle, bytes], None],
    ) -> None:
        """Build; nothing is sent before `start`.

        Raises:
            InvalidInputError: policy keys cannot be read, or identity is half configured.
        """
        self._settings = settings
        self._log = log
        self._apply = apply
        self.source = identity_source(settings)
        controller = SpiffeId.service(settings.trust_domain, "controller")
        # Never called without an endpoint: the watch is left out then.
        endpoint = settings.controller_endpoint or "127.0.0.1:0"
        self._channel = PeerChannel(self.source, endpoint, controller.dns_name)
        self._keys = load_keys(settings.policy_keys_file)
        self.watch = self._new_watch("")
        self._server: RpcServer | None = None
        self.admin_port = 0

    def load_policy(self) -> None:
        """Bring the last known good policy into force, if there is one."""
        self.watch.load()

    async def run(self) -> None:
        """Wait for an identity, then serve operators and follow the controller."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.source.run(), name="identity")
            await self.source.wait_changed(None)
            self.admin_port = await self._serve()
            if self._settings.controller_endpoint is not None:
                host = self._settings.admin_address.rpartition(":")[0]
                watch = self._new_watch(f"{host}:{self.admin_port}")
                watch.load()
                self.watch = watch
                group.create_task(watch.run(), name="policy watch")

    async def stop(self) -> None:
        """End the server and close the connection."""
        if self._server is not None:
            await self._server.stop(_STOP_GRACE_S)
        await self._channel.close()

    def _new_watch(self, admin_endpoint: str) -> PolicyWatch:
        return PolicyWatch(
            self._channel,
            RESERVED,
            self._keys,
            self._settings.state_dir / "policy",
            self._apply,
            admin_endpoint=admin_endpoint,
        )

    async def _serve(self) -> int:
        server = RpcServer(self.source, TABLE, self._settings.admin_address)
        servicer = EnforcementServicer(lambda: self.watch)
        server.add(policy_pb2_grpc.add_PolicyEnforcementServicer_to_server, servicer)
        server.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(self._log))
        self._server = server
        return await server.start()


class EnforcementServicer(policy_pb2_grpc.PolicyEnforcementServicer):
    """Tells which policy is in force."""

    def __init__(self, watch: Callable[[], PolicyWatch]) -> None:
        self._watch = watch

    async def GetInForce(  # noqa: N802  # named by the contract
        self,
        request: policy_pb2.GetInForceRequest,  # noqa: ARG002  # the contract's
        context: Any,  # noqa: ANN401, ARG002  # grpc's
    ) -> policy_pb2.GetInForceResponse:
        """Return the bundle in force; version 0 when there is none."""
        watch = self._watch()
        namespace, name = RESERVED
        answer = policy_pb2.InForce(sandbox=policy_pb2.SandboxRef(namespace=namespace, name=name))
        if watch.in_force is not None:
            _fill(answer, watch.in_force)
        if watch.last_nack is not None:
            answer.last_nack.CopyFrom(watch.last_nack)
        return policy_pb2.GetInForceResponse(doors=[answer])


def _fill(answer: policy_pb2.InForce, state: InForceState) -> None:
    answer.version = state.version
    answer.digest = state.digest
    answer.since.FromDatetime(state.since)
    answer.last_known_good = state.last_known_good
    answer.payload = state.payload


def identity_source(settings: GatewaySettings) -> SvidSource:
    """Return where the gateway's identity comes from.

    Raises:
        InvalidInputError: `settings_invalid`; without an identity no agent can be reached.
    """
    if settings.svid_dir is not None:
        return FileSvidSource(settings.svid_dir)
    endpoint, roots, token = (
        settings.controller_endpoint,
        settings.trust_bundle_file,
        settings.join_token_file,
    )
    if settings.bootstrap_endpoint is None or endpoint is None or roots is None or token is None:
        needed = "SVID_DIR, or BOOTSTRAP_ENDPOINT, CONTROLLER_ENDPOINT, TRUST_BUNDLE_FILE and JOIN_TOKEN_FILE"
        raise InvalidInputError("settings_invalid", f"an identity is needed: set {needed}")
    return ControllerSvidSource(
        SpiffeId.service(settings.trust_domain, SERVICE),
        bootstrap_endpoint=settings.bootstrap_endpoint,
        controller_endpoint=endpoint,
        trust_bundle_file=roots,
        attestation=JoinToken(token),
        state_directory=settings.state_dir / "svid",
    )
