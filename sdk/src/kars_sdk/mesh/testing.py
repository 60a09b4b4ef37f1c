"""For tests of whatever uses the mesh: an authority that signs statements, and agents that are ready to talk.

Everything here runs the real code on real files; only the controller is replaced.
"""

import asyncio
import base64
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message
from kars.mesh.v1 import identity_pb2, registry_pb2, relay_pb2

from kars_sdk.mesh import identity, primitives
from kars_sdk.mesh.directory import from_statement, to_statement
from kars_sdk.mesh.errors import TransportError
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.prekeys import Bundle, Prekeys
from kars_sdk.mesh.sessions import Me, Sessions
from kars_sdk.mesh.statements import SignedStatement, TrustKey, TrustKeys
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.transport import Outgoing, Prove, Refused
from kars_sdk.mesh.trust import Edge, TrustPolicy

_Response = TypeVar("_Response", bound=Message)

EVERYBODY = "spiffe://kars.test/ns/*/sandbox/*"
OPEN = TrustPolicy(
    edges=(Edge(source=EVERYBODY, target=EVERYBODY, score=600),),
    knocks_per_minute=100_000,
    knocks_per_minute_per_peer=100_000,
)
"""Everybody of the test's trust domain may knock, and is trusted with 600."""


def name(sandbox: str, *, namespace: str = "team", domain: str = "kars.test") -> PeerName:
    """Return a peer's name."""
    return peer_name(f"spiffe://{domain}/ns/{namespace}/sandbox/{sandbox}")


class Authority:
    """Stands in for the controller: binds names to keys."""

    def __init__(self, domain: str = "kars.test") -> None:
        self.domain = domain
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def trust(self) -> TrustKeys:
        """The keys that a sandbox would find mounted."""
        return TrustKeys([TrustKey(public_key=self.public, trust_domain=self.domain)])

    def trust_json(self) -> bytes:
        """The same, as the mounted file."""
        key = base64.urlsafe_b64encode(self.public).rstrip(b"=").decode()
        entry = {"keyId": identity.key_id(self.public), "publicKey": key, "trustDomain": self.domain}
        return json.dumps({"keys": [entry]}).encode()

    def statement(
        self,
        peer: str,
        identity_key: bytes,
        *,
        not_before: float | None = None,
        not_after: float | None = None,
        serial: int = 1,
    ) -> SignedStatement:
        """Sign that a name has a key; valid from an hour ago for a day when no times are given."""
        now = time.time()
        document = {
            "identityKey": base64.urlsafe_b64encode(identity_key).rstrip(b"=").decode(),
            "notAfter": _time(now + 86400 if not_after is None else not_after),
            "notBefore": _time(now - 3600 if not_before is None else not_before),
            "peer": peer,
            "serial": serial,
        }
        return self.sign(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())

    def sign(self, statement: bytes) -> SignedStatement:
        """Sign whatever bytes a test wants to have signed."""
        signature = self._key.sign(primitives.IDENTITY_LABEL + statement)
        return SignedStatement(statement=statement, signature=signature, key_id=identity.key_id(self.public))


@dataclass(kw_only=True)
class Agent:
    """One agent with its state on disk; `restart` is what a crash leaves."""

    name: PeerName
    authority: Authority
    identity: IdentityKey
    statement: SignedStatement
    folder: Path
    key: bytes
    policy: TrustPolicy
    clock: Callable[[], float]
    kem: bool
    store: Store
    prekeys: Prekeys
    sessions: Sessions

    @classmethod
    def create(
        cls,
        sandbox: str,
        authority: Authority,
        folder: Path,
        *,
        policy: TrustPolicy = OPEN,
        clock: Callable[[], float] = time.time,
        kem: bool = True,
    ) -> "Agent":
        """Make an agent with fresh state in a folder of its own."""
        peer, key = name(sandbox, domain=authority.domain), os.urandom(32)
        identity_key = IdentityKey.generate()
        statement = authority.statement(peer, identity_key.public)
        path = folder / sandbox
        store = Store(path, key)
        prekeys = Prekeys(store, identity_key, clock=clock, kem=kem)
        me = Me(name=peer, identity=identity_key, statement=statement, trust=authority.trust)
        return cls(
            name=peer, authority=authority, identity=identity_key, statement=statement, folder=path, key=key,
            policy=policy, clock=clock, kem=kem, store=store, prekeys=prekeys,
            sessions=Sessions(me, store, prekeys, policy, clock=clock),
        )  # fmt: skip

    def restart(self) -> None:
        """Forget everything that is not on disk."""
        self.store.close()
        self.store = Store(self.folder, self.key)
        self.prekeys = Prekeys(self.store, self.identity, clock=self.clock, kem=self.kem)
        me = Me(name=self.name, identity=self.identity, statement=self.statement, trust=self.authority.trust)
        self.sessions = Sessions(me, self.store, self.prekeys, self.policy, clock=self.clock)

    def bundle(self, *, one_time: bool = True) -> Bundle:
        """Return what an honest registry would hand out next."""
        current = self.prekeys.renew()
        if current.signed_prekey is None:
            raise AssertionError("there is always a signed prekey")
        more = self.prekeys.more(int(one_time), int(one_time and self.kem))
        return Bundle(
            identity=self.statement,
            signed_prekey=current.signed_prekey,
            one_time_prekey=more.one_time_prekeys[0] if one_time else None,
            kem_prekey=more.one_time_kem_prekeys[0]
            if one_time and self.kem
            else current.last_resort_kem_prekey,
            kem_is_last_resort=not one_time,
        )


def _time(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
        registration = registry_pb2.Registration(identity=request.identity, capabilities=request.capabilities)
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
