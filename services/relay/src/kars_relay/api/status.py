"""What operators and the controller may ask: status, mailboxes, the policy in force."""

from collections.abc import Callable
from typing import Any

from kars.mesh.v1 import relay_pb2, relay_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.policy import PolicyWatch
from kars_common.spiffe import SpiffeId

from kars_relay.mailbox import MailboxStore
from kars_relay.metrics import RelayMetrics
from kars_relay.policy import MeshPolicy
from kars_relay.routing import Hub

Context = Any


class StatusServicer(relay_pb2_grpc.RelayStatusServicer):
    """Shows the relay to people."""

    def __init__(
        self, relay: SpiffeId, store: MailboxStore, hub: Hub, policy: MeshPolicy, metrics: RelayMetrics
    ) -> None:
        self._relay = relay
        self._store = store
        self._hub = hub
        self._policy = policy
        self._metrics = metrics

    async def GetStatus(  # noqa: N802 - named by the contract
        self, _request: relay_pb2.GetStatusRequest, _context: Context
    ) -> relay_pb2.GetStatusResponse:
        """Tell what the relay holds."""
        totals, rules = self._store.totals, self._policy.rules
        return relay_pb2.GetStatusResponse(
            relay=str(self._relay),
            connected_peers=len(self._hub),
            stored_envelopes=totals.envelopes,
            stored_bytes=totals.size_bytes,
            accepted_envelopes=totals.accepted,
            refused_envelopes=self._metrics.refused_total,
            acked_envelopes=totals.acked,
            expired_envelopes=totals.expired,
            malformed_frames=self._metrics.malformed_total,
            policy_version=rules.version if rules else 0,
            policy_digest=rules.digest if rules else "",
            store=self._store.kind,
        )

    async def ListMailboxes(  # noqa: N802 - named by the contract
        self, request: relay_pb2.ListMailboxesRequest, _context: Context
    ) -> relay_pb2.ListMailboxesResponse:
        """Tell what waits for whom."""
        limit = min(max(request.page_size or 100, 1), 1000)
        found = await self._store.usage(request.after, limit)
        return relay_pb2.ListMailboxesResponse(
            mailboxes=[
                relay_pb2.MailboxStatus(
                    peer=box.peer,
                    connected=self._hub.attached(box.peer),
                    stored_envelopes=box.envelopes,
                    stored_bytes=box.size_bytes,
                )
                for box in found
            ]
        )


class InForceServicer(policy_pb2_grpc.PolicyEnforcementServicer):
    """Tells which bundle is enforced."""

    def __init__(self, watch: Callable[[], PolicyWatch]) -> None:
        self._watch = watch

    async def GetInForce(  # noqa: N802 - named by the contract
        self, _request: policy_pb2.GetInForceRequest, _context: Context
    ) -> policy_pb2.GetInForceResponse:
        """Return the one bundle of this relay."""
        watch = self._watch()
        shown = policy_pb2.InForce(sandbox=policy_pb2.SandboxRef(namespace="svc", name="relay"))
        if (state := watch.in_force) is not None:
            shown.version, shown.digest, shown.payload = state.version, state.digest, state.payload
            shown.since.FromDatetime(state.since)
            shown.last_known_good = state.last_known_good
        if watch.last_nack is not None:
            shown.last_nack.CopyFrom(watch.last_nack)
        return policy_pb2.GetInForceResponse(doors=[shown])
