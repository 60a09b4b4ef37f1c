"""A whole mesh in memory for tests: relay, registry, controller, and a router's door in front of it.

The agents that use it run the real code. The relay is as honest as a test lets it be.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeVar

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
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


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


def outgoing(submissions: list[relay_pb2.Submission]) -> list[Outgoing]:
    """Return submissions as the client handed them in."""
    return [
        Outgoing(PeerName(each.to), envelope.id, envelope.payload)
        for each in submissions
        for envelope in each.envelopes
    ]


class RouterDoor:
    """An ASGI application that speaks the door's contract for one agent."""

    def __init__(self, mesh: MemoryMesh, peer: PeerName) -> None:
        self.mesh, self.peer = mesh, peer
        self.endpoint = mesh.endpoint(peer)
        self.link: MemoryLink | None = None
        self.connect: asyncio.Future[relay_pb2.Connect] | None = None
        self.attached = asyncio.Event()
        self.last_end: dict[str, str] = {}
        self.tools: list[dict[str, str]] = []
        self.calls: list[tuple[str, bytes]] = []
        self.policy = b'{"threshold": 0, "requireEdge": false, "knocksPerMinutePerPeer": 1000}'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        try:
            if not scope["path"].startswith("/mesh/v1/"):
                await self.other(scope, body, send)
                return
            await self.route(scope["path"], body, receive, send)
        except TransportError as exc:
            error = {"error": {"message": str(exc), "type": "mesh", "code": exc.reason, "param": None}}
            await answer(send, 503, json.dumps(error).encode())

    async def other(self, scope: Scope, body: bytes, send: Send) -> None:
        """Answer what is not of the mesh: what was announced, and nothing else."""
        if scope["path"] == "/agt/tools" and self.tools:
            await answer(send, 200, json.dumps({"tools": self.tools}).encode())
        elif any(each["path"] == scope["path"] for each in self.tools):
            self.calls.append((f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}", body))
            await answer(send, 200, b'{"ok": true}')
        else:
            error = {
                "error": {"message": "no such route", "type": "door", "code": "not_found", "param": None}
            }
            await answer(send, 404, json.dumps(error).encode())

    async def route(self, path: str, body: bytes, receive: Receive, send: Send) -> None:
        """Answer one route of the mesh."""
        match path.split("/")[3:]:
            case ["policy"]:
                await answer(send, 200, self.policy)
            case ["status"]:
                await answer(send, 200, json.dumps({"peer": self.peer, "lastEnd": self.last_end}).encode())
            case ["identity"]:
                request = identity_pb2.IssueStatementRequest.FromString(body)
                await answer(send, 200, (await self.endpoint.issue_statement(request)).SerializeToString())
            case ["registry", method]:
                asked = getattr(registry_pb2, f"{method}Request").FromString(body)
                found = await self.endpoint.call(method, asked, getattr(registry_pb2, f"{method}Response"))
                await answer(send, 200, found.SerializeToString())
            case ["submit"]:
                await answer(send, 200, await self.submit(relay_pb2.AttachRequest.FromString(body)))
            case ["ack"]:
                if self.link is not None:
                    await self.link.ack(relay_pb2.AttachRequest.FromString(body).ack_through)
                await answer(send, 204, b"")
            case ["deliver"]:
                await self.deliver(receive, send)
            case _:
                await answer(send, 404, b"{}")

    async def submit(self, frame: relay_pb2.AttachRequest) -> bytes:
        """Hand a frame to the relay."""
        if frame.HasField("connect"):
            if self.connect is None:
                raise TransportError("mesh_not_attached", "no hello was sent")
            self.connect.set_result(frame.connect)
            await self.attached.wait()
            if self.link is None:
                raise TransportError("mesh_not_attached", "the relay did not take the proof")
            return relay_pb2.AttachResponse(welcome=self.link.welcome).SerializeToString()
        if self.link is None:
            raise TransportError("mesh_not_attached", "not attached")
        batch = outgoing(list(frame.submissions))
        receipt = relay_pb2.Receipt(decided_through=len(batch))
        for refused in await self.link.submit(batch):
            reason = relay_pb2.REFUSAL_REASON_EDGE_FORBIDDEN
            receipt.refusals.append(relay_pb2.Refusal(number=refused.index + 1, count=1, reason=reason))
        return relay_pb2.AttachResponse(receipt=receipt).SerializeToString()

    async def attach(self, frame: Callable[[relay_pb2.AttachResponse], Awaitable[None]]) -> None:
        """Attach like a router: the relay's hello goes to the agent, the agent's proof to the relay."""
        self.connect = asyncio.get_running_loop().create_future()
        self.attached.clear()
        hello = relay_pb2.Hello(nonce=b"n" * 32, relay="spiffe://kars.test/svc/relay")
        await frame(relay_pb2.AttachResponse(hello=hello))
        proof = await self.connect
        async with self.endpoint.attach_with(hello, lambda _: proof) as link:
            self.link = link
            self.attached.set()
            try:
                async for each in link.frames():
                    await frame(each)
            except TransportError as exc:
                if exc.fatal:
                    raise
            finally:
                self.link = None

    async def deliver(self, receive: Receive, send: Send) -> None:
        """Stream frames to the agent."""
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def disconnected() -> None:
            await receive()

        gone = asyncio.create_task(disconnected(), name="test-gone")

        async def frame(message: relay_pb2.AttachResponse) -> None:
            data = message.SerializeToString()
            data = len(data).to_bytes(4, "big") + data
            for part in (data[:3], data[3:10], data[10:]):  # borders of chunks mean nothing
                await send({"type": "http.response.body", "body": part, "more_body": True})

        async def stream() -> None:
            while True:
                await self.attach(frame)

        serving = asyncio.create_task(stream(), name="test-stream")
        await asyncio.wait([gone, serving], return_when=asyncio.FIRST_COMPLETED)
        for task in (gone, serving):
            task.cancel()
        await asyncio.wait([gone, serving])
        if not serving.cancelled() and isinstance(serving.exception(), TransportError):
            failure = serving.exception()
            self.last_end = {"reason": getattr(failure, "reason", ""), "message": str(failure)}
        self.link = None
        with contextlib.suppress(Exception):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answer(send: Send, status: int, body: bytes) -> None:
    """Answer with a status and a body."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
