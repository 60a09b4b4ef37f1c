"""The link to the controller: identity, policy, witness. All but the identity may be absent for a while.

Without a controller the relay enforces the last policy that it was given; without any, it bridges nothing.
"""

import logging
from typing import Any

from kars.audit.v1 import audit_pb2, audit_pb2_grpc
from kars_common.audit import AuditLog, WitnessedLog, parse_verifier_key, submit_over
from kars_common.errors import FailedPreconditionError, InvalidInputError
from kars_common.identity import ControllerSvidSource, FileSvidSource, JoinToken, SvidSource
from kars_common.policy import PolicyWatch, load_keys
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.spiffe import SpiffeId

from kars_relay.policy import MeshPolicy
from kars_relay.settings import RelaySettings

_LOG = logging.getLogger(__name__)
SUBJECT = ("svc", "relay")
"""What the relay's bundle is for: no sandbox is in a namespace of this name."""


class ControllerLink:
    """Owns the channel to the controller and what runs over it."""

    def __init__(
        self, settings: RelaySettings, source: SvidSource, policy: MeshPolicy, log: AuditLog
    ) -> None:
        """Build; nothing is sent before `policy_run` and `witness_run`.

        Raises:
            InvalidInputError: policy keys or witness key cannot be read.
        """
        self._endpoint = settings.controller_endpoint
        controller = SpiffeId.service(settings.trust_domain, "controller")
        self._channel = PeerChannel(source, self._endpoint or "127.0.0.1:0", controller.dns_name)
        keys = load_keys(settings.policy_keys_file)
        self.watch = PolicyWatch(self._channel, SUBJECT, keys, settings.state_dir / "policy", policy.apply)
        self._witness = self._witnessed(settings, log)

    @property
    def connected(self) -> bool:
        """Whether there is a controller to follow."""
        return self._endpoint is not None

    @property
    def witnessed(self) -> bool:
        """Whether checkpoints are shown to a witness."""
        return self.connected and self._witness is not None

    async def witness_run(self) -> None:
        """Have checkpoints cosigned for ever."""
        assert self._witness is not None
        try:
            await self._witness.run()
        except FailedPreconditionError as exc:
            # The log contradicts what the witness saw: a fact for people. Serving on destroys no evidence.
            _LOG.error("the witness refuses this log", extra={"reason": exc.reason})

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def _witnessed(self, settings: RelaySettings, log: AuditLog) -> WitnessedLog | None:
        path = settings.witness_key_file
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

        return WitnessedLog(log, submit_over(call), name, key)


def svid_source(settings: RelaySettings) -> SvidSource:
    """Return where the relay's identity comes from."""
    if settings.svid_dir is not None:
        return FileSvidSource(settings.svid_dir)
    endpoints = settings.bootstrap_endpoint, settings.controller_endpoint
    files = settings.trust_bundle_file, settings.join_token_file
    if not (endpoints[0] and endpoints[1] and files[0] and files[1]):
        raise InvalidInputError("settings_invalid", "BOOTSTRAP_ENDPOINT lacks what it needs")
    return ControllerSvidSource(
        SpiffeId.service(settings.trust_domain, "relay"),
        bootstrap_endpoint=endpoints[0],
        controller_endpoint=endpoints[1],
        trust_bundle_file=files[0],
        attestation=JoinToken(files[1]),
        state_directory=settings.state_dir / "svid",
    )
