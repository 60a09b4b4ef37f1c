"""The aggregated discovery service, delta variant: what Envoy connects to.

One task reads and one writes: two writes in flight on one stream hang it. A sandbox's own Envoy gets that
sandbox's resources and no other's; the identity that says so is the certificate's.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from kars.egress.envoy import discovery_pb2, discovery_pb2_grpc
from kars_common.errors import InvalidInputError
from kars_common.rpc import caller

from kars_egress.policy.sandboxes import SandboxId
from kars_egress.xds.snapshot import Snapshot
from kars_egress.xds.subscription import Subscription, Subscriptions

_LOG = logging.getLogger(__name__)


class DiscoveryServicer(discovery_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Serves the snapshot."""

    def __init__(self, snapshot: Snapshot, subscriptions: Subscriptions) -> None:
        self._snapshot = snapshot
        self._subscriptions = subscriptions

    async def DeltaAggregatedResources(  # noqa: N802 - named by Envoy
        self,
        requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
        context: Any,  # noqa: ANN401
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Send what is asked for, then every change, until Envoy goes."""
        identity = caller(context)
        reference = identity.sandbox_ref
        changed = asyncio.Event()
        subscription = Subscription(
            self._snapshot, None if reference is None else SandboxId(*reference), changed.set
        )
        unlisten = self._snapshot.listen(subscription.changed)
        self._subscriptions.add(subscription)
        reader = asyncio.create_task(_read(requests, subscription, changed), name="xds reader")
        _LOG.info("an Envoy is connected", extra={"peer": str(identity)})
        try:
            while True:
                response = subscription.next_response()
                if response is not None:
                    yield response
                elif reader.done():
                    break
                else:
                    await changed.wait()
                    changed.clear()
            reader.result()
        finally:
            unlisten()
            self._subscriptions.discard(subscription)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            _LOG.info("an Envoy is gone", extra={"peer": str(identity)})


async def _read(
    requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
    subscription: Subscription,
    changed: asyncio.Event,
) -> None:
    try:
        async for request in requests:
            if not isinstance(request, discovery_pb2.DeltaDiscoveryRequest):
                raise InvalidInputError("xds_request_invalid", "bytes that are no discovery request")
            before = len(subscription.refusals)
            subscription.request(request)
            if len(subscription.refusals) > before:
                _LOG.error("Envoy refused a resource", extra={"why": request.error_detail.message[:512]})
    finally:
        changed.set()
