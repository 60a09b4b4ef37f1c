"""A whole mesh in memory for tests: relay, registry and controller.

The agents that use it run the real code. The relay is as honest as a test lets it be.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from kars.mesh.v1 import identity_pb2, registry_pb2, relay_pb2

from kars_sdk.mesh import primitives
from kars_sdk.mesh.directory import from_statement, to_statement
from kars_sdk.mesh.errors import TransportError
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.testing import Authority
from kars_sdk.mesh.testing_log import TreeLog
from kars_sdk.mesh.transport import Outgoing, Prove, Refused

_Response = TypeVar("_Response", bound=Message)


class MemoryMesh:
    """Relay, registry and controller in memory, behind the same seam; as honest as a test lets them be.

    `tamper` sees every payload that is delivered and may return any number of payloads instead.
    """

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.serial = 0
        self.registrations: dict[str, registry_pb2.Registration] = {}
        self.prekeys: dict[str, registry_pb2.PublishPrekeysRequest] = {}
        self.mailboxes: dict[str, list[tuple[int, str, relay_pb2.Envelope]]] = {}
        self.seen: set[tuple[str, str, bytes]] = set()
        self.forbidden: set[tuple[str, str]] = set()
        self.log = TreeLog(f"{authority.domain}/mesh-registrations")
        self.ratings: dict[str, int] = {}
        self.down: set[str] = set()
        """`registry` or `relay`: what does not answer."""
        self.tamper: Callable[[bytes], list[bytes]] = lambda payload: [payload]
        self.payloads: list[bytes] = []
        """Everything that ever passed: what a relay could read."""
        self._sequence = 0
        self._links: dict[str, MemoryLink] = {}

    def endpoint(self, peer: PeerName) -> "MemoryEndpoint":
        """Return what a peer's client uses."""
        return MemoryEndpoint(self, peer)

    def put(self, sender: str, recipient: str, envelope: relay_pb2.Envelope) -> None:
        """Store an envelope; one id once."""
        key = (sender, recipient, envelope.id)
        if key in self.seen:
            return
        self.seen.add(key)
        self.payloads.append(envelope.payload)
        for payload in self.tamper(envelope.payload):
            self._sequence += 1
            changed = relay_pb2.Envelope(id=envelope.id, payload=payload)
            self.mailboxes.setdefault(recipient, []).append((self._sequence, sender, changed))
        if recipient in self._links:
            self._links[recipient].more.set()

    def cut(self, peer: PeerName, reason: str = "relay_unreachable", *, fatal: bool = False) -> None:
        """End a peer's attachment."""
        link = self._links.pop(peer, None)
        if link is not None:
            link.ended = TransportError(reason, "the test cut it", fatal=fatal)
            link.more.set()


# The methods that answer are named as the contract names them.
# ruff: noqa: N802


class MemoryEndpoint:
    """Transport and Registry of one peer."""

    def __init__(self, mesh: MemoryMesh, peer: PeerName) -> None:
        self._mesh = mesh
        self._peer = peer

    async def issue_statement(
        self, request: identity_pb2.IssueStatementRequest
    ) -> identity_pb2.IssueStatementResponse:
        """State a name; the proof of possession is checked."""
        if not primitives.verify(
            request.identity_key, request.possession_proof, primitives.POSSESSION_LABEL, self._peer.encode()
        ):
            raise TransportError("possession_proof_invalid", "the proof does not fit", fatal=True)
        self._mesh.serial += 1
        statement = self._mesh.authority.statement(self._peer, request.identity_key, serial=self._mesh.serial)
        return identity_pb2.IssueStatementResponse(statement=to_statement(statement))

    async def call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        """Answer as the contract says."""
        if "registry" in self._mesh.down:
            raise TransportError("registry_unreachable", "the registry is away")
        answer = getattr(self, "_" + method)(request)
        if not isinstance(answer, response):
            raise TypeError(f"{method} answers with {type(answer).__name__}")
        return answer

    def _Register(self, request: registry_pb2.RegisterRequest) -> registry_pb2.RegisterResponse:
        statement = self._mesh.authority.trust.verify(from_statement(request.identity), now=time.time())
        index, record = self._mesh.log.append(
            type="mesh.registered",
            peer_sha256=primitives.sha256(statement.peer.encode()).hex(),
            statement_sha256=primitives.sha256(request.identity.statement).hex(),
            identity_key=statement.identity_key.hex(),
        )
        registration = registry_pb2.Registration(
            identity=request.identity,
            capabilities=request.capabilities,
            log_entry=registry_pb2.LogEntry(index=index, record=record),
        )
        self._mesh.registrations[self._peer] = registration
        return registry_pb2.RegisterResponse(registration=registration)

    def _PublishPrekeys(
        self, request: registry_pb2.PublishPrekeysRequest
    ) -> registry_pb2.PublishPrekeysResponse:
        kept = self._mesh.prekeys.setdefault(self._peer, registry_pb2.PublishPrekeysRequest())
        if request.HasField("signed_prekey"):
            kept.ClearField("signed_prekey")
            kept.ClearField("last_resort_kem_prekey")
        kept.MergeFrom(request)
        return registry_pb2.PublishPrekeysResponse(
            one_time_left=len(kept.one_time_prekeys), one_time_kem_left=len(kept.one_time_kem_prekeys)
        )

    def _GetPrekeyCounts(
        self, _: registry_pb2.GetPrekeyCountsRequest
    ) -> registry_pb2.GetPrekeyCountsResponse:
        kept = self._mesh.prekeys.get(self._peer, registry_pb2.PublishPrekeysRequest())
        return registry_pb2.GetPrekeyCountsResponse(
            one_time_left=len(kept.one_time_prekeys), one_time_kem_left=len(kept.one_time_kem_prekeys)
        )

    def _TakePrekeys(self, request: registry_pb2.TakePrekeysRequest) -> registry_pb2.TakePrekeysResponse:
        kept = self._mesh.prekeys.get(request.peer)
        if kept is None or request.peer not in self._mesh.registrations:
            raise TransportError("peer_not_found", f"{request.peer} is not registered")
        answer = registry_pb2.TakePrekeysResponse(
            registration=self._mesh.registrations[request.peer], signed_prekey=kept.signed_prekey
        )
        if kept.one_time_prekeys:
            answer.one_time_prekey.CopyFrom(kept.one_time_prekeys.pop(0))
        answer.kem_is_last_resort = not kept.one_time_kem_prekeys
        if kept.one_time_kem_prekeys:
            answer.kem_prekey.CopyFrom(kept.one_time_kem_prekeys.pop(0))
        elif kept.HasField("last_resort_kem_prekey"):
            answer.kem_prekey.CopyFrom(kept.last_resort_kem_prekey)
        return answer

    def _Discover(self, request: registry_pb2.DiscoverRequest) -> registry_pb2.DiscoverResponse:
        return registry_pb2.DiscoverResponse(
            peers=[
                registry_pb2.DiscoveredPeer(peer=peer, capabilities=registration.capabilities)
                for peer, registration in sorted(self._mesh.registrations.items())
                if peer != self._peer
                and (not request.capability or request.capability in registration.capabilities)
            ]
        )

    def _Lookup(self, request: registry_pb2.LookupRequest) -> registry_pb2.LookupResponse:
        if request.peer not in self._mesh.registrations:
            raise TransportError("peer_not_found", f"{request.peer} is not registered")
        score = registry_pb2.Reputation(score=self._mesh.ratings.get(request.peer, 0))
        return registry_pb2.LookupResponse(
            registration=self._mesh.registrations[request.peer], reputation=score
        )

    def _GetPresence(self, request: registry_pb2.GetPresenceRequest) -> registry_pb2.GetPresenceResponse:
        attached = request.peer in self._mesh._links  # noqa: SLF001 - one mesh in two classes
        presence = registry_pb2.PRESENCE_ATTACHED if attached else registry_pb2.PRESENCE_AWAY
        return registry_pb2.GetPresenceResponse(presence=presence)

    def _RatePeer(self, request: registry_pb2.RatePeerRequest) -> registry_pb2.RatePeerResponse:
        self._mesh.ratings[request.peer] = request.score
        return registry_pb2.RatePeerResponse(reputation=registry_pb2.Reputation(score=request.score))

    def attach(self, prove: Prove) -> contextlib.AbstractAsyncContextManager["MemoryLink"]:
        """Attach; the proof is checked as a relay checks it."""
        hello = relay_pb2.Hello(nonce=os.urandom(32), relay="spiffe://kars.test/svc/relay")
        return self.attach_with(hello, prove)

    def _GetTreeHead(self, _: registry_pb2.GetTreeHeadRequest) -> registry_pb2.GetTreeHeadResponse:
        log = self._mesh.log
        return registry_pb2.GetTreeHeadResponse(signed_note=log.head(), verifier_key=log.verifier_key)

    def _GetInclusionProof(
        self, request: registry_pb2.GetInclusionProofRequest
    ) -> registry_pb2.GetInclusionProofResponse:
        hashes = self._mesh.log.inclusion(request.index, 0, request.tree_size)
        return registry_pb2.GetInclusionProofResponse(tree_size=request.tree_size, hashes=hashes)

    def _GetConsistencyProof(
        self, request: registry_pb2.GetConsistencyProofRequest
    ) -> registry_pb2.GetConsistencyProofResponse:
        hashes = self._mesh.log.consistency(request.old_size, 0, request.new_size)
        return registry_pb2.GetConsistencyProofResponse(new_size=request.new_size, hashes=hashes)

    @contextlib.asynccontextmanager
    async def attach_with(self, hello: relay_pb2.Hello, prove: Prove) -> AsyncIterator["MemoryLink"]:
        """Attach with a hello that was sent already."""
        if "relay" in self._mesh.down:
            raise TransportError("relay_unreachable", "the relay is away")
        connect = prove(hello)
        statement = self._mesh.authority.trust.verify(
            from_statement(connect.identity), now=time.time(), peer=self._peer
        )
        message = hello.nonce + hello.relay.encode() + b"\0" + self._peer.encode()
        if not primitives.verify(statement.identity_key, connect.proof, primitives.CONNECT_LABEL, message):
            raise TransportError("connect_proof_invalid", "the proof does not fit", fatal=True)
        self._mesh.cut(self._peer, "peer_replaced", fatal=True)
        link = MemoryLink(self._mesh, self._peer)
        self._mesh._links[self._peer] = link  # noqa: SLF001 - one mesh in two classes
        try:
            yield link
        finally:
            if self._mesh._links.get(self._peer) is link:  # noqa: SLF001
                del self._mesh._links[self._peer]  # noqa: SLF001


class MemoryLink:
    """One attachment."""

    def __init__(self, mesh: MemoryMesh, peer: PeerName) -> None:
        self._mesh = mesh
        self._peer = peer
        self._delivered = 0
        self.more = asyncio.Event()
        self.ended: TransportError | None = None
        self.notices: list[relay_pb2.Notice] = []

    @property
    def welcome(self) -> relay_pb2.Welcome:
        """What a relay would grant."""
        return relay_pb2.Welcome(max_in_flight_envelopes=256, max_payload_bytes=2 << 20, max_ttl_s=259200)

    async def frames(self) -> AsyncIterator[relay_pb2.AttachResponse]:
        """Deliver what waits, then what comes."""
        while True:
            self.more.clear()
            if self.ended is not None:
                raise self.ended
            for sequence, sender, envelope in list(self._mesh.mailboxes.get(self._peer, [])):
                if sequence > self._delivered:
                    self._delivered = sequence
                    yield relay_pb2.AttachResponse(
                        deliveries=[
                            relay_pb2.Delivery(sender=sender, envelopes=[envelope], first_seq=sequence)
                        ]
                    )
            if not self.more.is_set():
                await self.more.wait()

    async def submit(self, batch: Sequence[Outgoing]) -> list[Refused]:
        """Store, or refuse what the test forbids."""
        if self.ended is not None or "relay" in self._mesh.down:
            raise self.ended or TransportError("relay_unreachable", "the relay is away")
        refused = []
        for index, each in enumerate(batch):
            if (self._peer, each.recipient) in self._mesh.forbidden:
                refused.append(Refused(index, "edge_forbidden", 0))
            else:
                envelope = relay_pb2.Envelope(id=each.envelope_id, payload=each.payload)
                self._mesh.put(self._peer, each.recipient, envelope)
        return refused

    async def ack(self, through: int) -> None:
        """Forget what was acknowledged."""
        mailbox = self._mesh.mailboxes.get(self._peer, [])
        mailbox[:] = [each for each in mailbox if each[0] > through]
