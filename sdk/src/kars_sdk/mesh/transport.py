"""The seam between the client and whatever carries its frames and asks the registry.

Two implementations: `door` (through the sandbox router, the way of an agent) and `direct` (gRPC over mTLS,
for a laptop or a test). Neither sees a key or a plaintext, and the client does not know which one it uses.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message
from kars.mesh.v1 import identity_pb2, relay_pb2

from kars_sdk.mesh.names import PeerName

MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_BATCH_ENVELOPES = 64
MAX_BATCH_BYTES = 256 * 1024
"""What is drained into one frame; more would wait for no gain."""

Prove = Callable[[relay_pb2.Hello], relay_pb2.Connect]
"""Answers a relay's hello. Called for each connection; the proof fits only that one."""

_Response = TypeVar("_Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One envelope to hand in."""

    recipient: PeerName
    envelope_id: bytes
    payload: bytes
    ttl_s: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """One envelope that was not stored."""

    index: int
    reason: str
    retry_after_s: float


class Link(Protocol):
    """One attachment to a relay."""

    @property
    def welcome(self) -> relay_pb2.Welcome:
        """The limits that the relay grants."""

    def frames(self) -> AsyncIterator[relay_pb2.AttachResponse]:
        """Return deliveries and notices; ends when the relay ends the attachment.

        Raises:
            TransportError: with the relay's reason; `fatal` when connecting again would be wrong.
        """

    async def submit(self, batch: Sequence[Outgoing]) -> list[Refused]:
        """Hand in envelopes, in order; on return all others are durably stored.

        Safe to repeat with the same ids after an error.

        Raises:
            TransportError: nothing is known about any of them.
        """

    async def ack(self, through: int) -> None:
        """Tell that everything up to a sequence number is kept by the application.

        Raises:
            TransportError: they will come again.
        """


class Transport(Protocol):
    """Attaches to the mesh."""

    def attach(self, prove: Prove) -> AbstractAsyncContextManager[Link]:
        """Connect.

        Raises:
            TransportError: see `Link.frames`.
        """


class Registry(Protocol):
    """Asks registry and controller."""

    async def call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        """Call one method of `kars.mesh.v1.Registry`.

        Raises:
            TransportError: with the service's reason.
        """

    async def issue_statement(
        self, request: identity_pb2.IssueStatementRequest
    ) -> identity_pb2.IssueStatementResponse:
        """Ask the controller to bind this agent's name to a key.

        Raises:
            TransportError: with the controller's reason.
        """


def submissions(batch: Sequence[Outgoing]) -> list[relay_pb2.Submission]:
    """Return a batch as the contract has it: runs of one recipient, in order."""
    runs: list[relay_pb2.Submission] = []
    for each in batch:
        if not runs or runs[-1].to != each.recipient or runs[-1].ttl_s != each.ttl_s:
            runs.append(relay_pb2.Submission(to=each.recipient, ttl_s=each.ttl_s))
        runs[-1].envelopes.append(relay_pb2.Envelope(id=each.envelope_id, payload=each.payload))
    return runs


def refusals(receipt: relay_pb2.Receipt, *, first: int, count: int) -> list[Refused]:
    """Return what a receipt says about the envelopes numbered from `first` on, by index."""
    found: list[Refused] = []
    for refusal in receipt.refusals:
        name = relay_pb2.RefusalReason.Name(refusal.reason) if refusal.reason in _REASONS else ""
        reason = name.removeprefix("REFUSAL_REASON_").lower() or "refused"
        numbers = range(refusal.number, refusal.number + max(1, min(refusal.count, first + count)))
        found.extend(
            Refused(number - first, reason, refusal.retry_after_ms / 1000)
            for number in numbers
            if first <= number < first + count
        )
    return found


_REASONS = frozenset(relay_pb2.RefusalReason.values())
FATAL_REASONS = frozenset({"peer_replaced", "peer_mismatch", "peer_missing", "connect_proof_invalid"})
"""Ends after which the same attempt would end the same way."""
