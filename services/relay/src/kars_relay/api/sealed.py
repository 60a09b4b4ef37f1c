"""`Relay.SubmitSealed`: mail from whoever holds the recipient's delivery token.

Served on a listener of its own that asks for no client certificate, so the relay has no name to forget. A
wrong token, a recipient that accepts none and one that does not exist are one answer.
"""

import hashlib
import hmac
from typing import Any

import grpc
from kars.mesh.v1 import relay_pb2
from kars_common.errors import InvalidInputError, PermissionDeniedError
from kars_common.spiffe import SpiffeId

from kars_relay.api.relay import SERVICE
from kars_relay.frames import FrameError, scan_submission
from kars_relay.metrics import RelayMetrics
from kars_relay.policy import MeshPolicy
from kars_relay.recorder import Recorder
from kars_relay.routing import Exchange

Context = Any


class SealedDoor:
    """Serves `Relay.SubmitSealed`."""

    def __init__(
        self, policy: MeshPolicy, exchange: Exchange, recorder: Recorder, metrics: RelayMetrics
    ) -> None:
        self._policy = policy
        self._exchange = exchange
        self._recorder = recorder
        self._metrics = metrics

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server."""
        submit: Any = grpc.unary_unary_rpc_method_handler(
            self.submit,
            request_deserializer=relay_pb2.SubmitSealedRequest.FromString,
            response_serializer=relay_pb2.SubmitSealedResponse.SerializeToString,
        )
        handlers = {"SubmitSealed": submit}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def submit(
        self, request: relay_pb2.SubmitSealedRequest, _context: Context
    ) -> relay_pb2.SubmitSealedResponse:
        """Store a submission without a sender."""
        recipient = await self._admitted(request)
        try:
            run = scan_submission(request.submission.SerializeToString())
        except FrameError as exc:
            self._metrics.malformed()
            raise InvalidInputError(exc.reason, str(exc)) from None
        sender = self._exchange.sealed(recipient)
        accepted = await self._exchange.accept(sender, [run], 1)
        refusals = list(accepted.refusals)
        if accepted.stored is not None:
            await accepted.stored
            refused = accepted.stored_refusals()
            self._exchange.count(sender, refused, str(recipient))
            refusals += refused
        return relay_pb2.SubmitSealedResponse(
            refusals=[
                relay_pb2.Refusal(
                    number=refusal.number,
                    count=refusal.count,
                    reason=refusal.reason,  # type: ignore[arg-type]  # a number from the enum
                    retry_after_ms=refusal.retry_after_ms,
                )
                for refusal in sorted(refusals)
            ]
        )

    async def _admitted(self, request: relay_pb2.SubmitSealedRequest) -> SpiffeId:
        rules = self._policy.require()
        recipient = SpiffeId.parse(request.submission.to)
        if not rules.accepts_sealed(recipient):
            self._recorder.refused("mesh.sealed_refused", "sealed_not_allowed", "sealed", str(recipient))
            raise PermissionDeniedError("sealed_not_allowed", "policy lets nobody write to this peer unnamed")
        expected = await self._exchange.store.token(str(recipient))
        shown = hashlib.sha256(request.delivery_token).digest()
        if not expected or not hmac.compare_digest(expected, shown):
            self._recorder.refused("mesh.sealed_refused", "delivery_token_invalid", "sealed", str(recipient))
            raise PermissionDeniedError("delivery_token_invalid", "the delivery token is not the recipient's")
        return recipient
