"""The Federation service: what relays of other trust domains may ask."""

from typing import Any

from kars.mesh.v1 import federation_pb2, federation_pb2_grpc, relay_pb2
from kars_common.errors import InvalidInputError, KarsError, PermissionDeniedError
from kars_common.spiffe import SpiffeId

from kars_relay.federation import proven_domain
from kars_relay.frames import FrameError, Run, scan_submission
from kars_relay.policy import FederatedDomain, MeshPolicy
from kars_relay.recorder import Recorder
from kars_relay.registry.desk import RegistryDesk
from kars_relay.routing import Exchange, Refusal

Context = Any


class FederationServicer(federation_pb2_grpc.FederationServicer):
    """Serves federated relays."""

    def __init__(
        self, policy: MeshPolicy, exchange: Exchange, desk: RegistryDesk, recorder: Recorder
    ) -> None:
        self._policy = policy
        self._exchange = exchange
        self._desk = desk
        self._recorder = recorder

    async def Forward(  # noqa: N802 - named by the contract
        self, request: federation_pb2.ForwardRequest, context: Context
    ) -> federation_pb2.ForwardResponse:
        """Accept mail for our peers."""
        domain = proven_domain(context, self._policy)
        number = 1
        pending = []
        refusals: list[Refusal] = []
        for item in request.submissions:
            identity = self._of_domain(item.sender, domain)
            run = _run(item.submission)
            sender = self._exchange.foreign(identity, domain.trust_domain, domain.quota)
            if not self._is_ours(run):
                refusals.append(Refusal(number, len(run.ids), relay_pb2.REFUSAL_REASON_NOT_FEDERATED))
            else:
                accepted = await self._exchange.accept(sender, [run], number)
                pending.append((sender, accepted))
                refusals += accepted.refusals
            number += len(run.ids)
        for sender, accepted in pending:
            if accepted.stored is not None:
                await accepted.stored
                refused = accepted.stored_refusals()
                self._exchange.count(sender, refused)
                refusals += refused
        return federation_pb2.ForwardResponse(refusals=[_message(refusal) for refusal in sorted(refusals)])

    async def LookupForeign(  # noqa: N802 - named by the contract
        self, request: federation_pb2.LookupForeignRequest, context: Context
    ) -> federation_pb2.LookupForeignResponse:
        """Look one of our peers up for one of theirs."""
        domain = proven_domain(context, self._policy)
        identity = self._of_domain(request.on_behalf_of, domain)
        lookup = await self._desk.lookup(identity, SpiffeId.parse(request.lookup.peer))
        return federation_pb2.LookupForeignResponse(lookup=lookup)

    async def TakeForeignPrekeys(  # noqa: N802 - named by the contract
        self, request: federation_pb2.TakeForeignPrekeysRequest, context: Context
    ) -> federation_pb2.TakeForeignPrekeysResponse:
        """Hand out prekeys of one of our peers to one of theirs."""
        domain = proven_domain(context, self._policy)
        identity = self._of_domain(request.on_behalf_of, domain)
        take = await self._desk.take(identity, SpiffeId.parse(request.take.peer))
        return federation_pb2.TakeForeignPrekeysResponse(take=take)

    def _of_domain(self, name: str, domain: FederatedDomain) -> SpiffeId:
        try:
            identity = SpiffeId.parse(name)
            if identity.trust_domain != domain.trust_domain or identity.sandbox_ref is None:
                raise PermissionDeniedError(
                    "sender_not_of_domain", f"{domain.relay} may speak of its own peers only"
                )
        except KarsError as error:
            self._recorder.refused("mesh.federation_refused", error.reason, str(domain.relay), name[:256])
            raise
        return identity

    def _is_ours(self, run: Run) -> bool:
        """Mail from one domain to another does not pass through here."""
        return run.to.startswith(f"spiffe://{self._policy.trust_domain}/".encode())


def _run(submission: relay_pb2.Submission) -> Run:
    try:
        return scan_submission(submission.SerializeToString())
    except FrameError as exc:
        raise InvalidInputError(exc.reason, str(exc)) from None


def _message(refusal: Refusal) -> relay_pb2.Refusal:
    return relay_pb2.Refusal(
        number=refusal.number,
        count=refusal.count,
        reason=refusal.reason,  # type: ignore[arg-type]  # a number from the enum
        retry_after_ms=refusal.retry_after_ms,
    )
