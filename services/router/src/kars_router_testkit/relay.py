"""A relay as the router sees it, over real mTLS, that does what the test tells it to."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from kars.mesh.v1 import registry_pb2, registry_pb2_grpc, relay_pb2, relay_pb2_grpc
from kars_common.errors import KarsError, NotFoundError, UnavailableError
from kars_common.rpc import AuthorizationTable, RpcServer, caller
from kars_common.testing import MemoryAuthority, StaticSvidSource

from kars_router_testkit.controller import SANDBOXES

RELAY = "spiffe://kars.local/svc/relay"


class FakeRelay(relay_pb2_grpc.RelayServicer, registry_pb2_grpc.RegistryServicer):
    """Accepts whoever connects, and everything that is submitted; what it heard is kept.

    Attributes:
        heard: every frame of every client, in order.
        connected: one item for each connect.
        refuse_connect: raised instead of a welcome.
        refuse: recipients whose envelopes are refused, with the reason.
        silent: no receipts are sent while this is set.
        window: of the welcome, in envelopes.
    """

    def __init__(self, authority: MemoryAuthority) -> None:
        self.authority = authority
        self.endpoint = ""
        self.heard: list[relay_pb2.AttachRequest] = []
        self.connected: asyncio.Queue[str] = asyncio.Queue()
        self.acked: asyncio.Queue[int] = asyncio.Queue()
        self.refuse_connect: KarsError | None = None
        self.refuse: dict[str, relay_pb2.RefusalReason.ValueType] = {}
        self.silent = False
        self.window = 128
        self.lookups: list[str] = []
        self.callers: list[str] = []
        self._out: list[asyncio.Queue[relay_pb2.AttachResponse | KarsError]] = []
        self._server: RpcServer | None = None

    async def start(self, address: str = "127.0.0.1:0") -> None:
        """Serve on an address; by default on a free port."""
        names = [f"kars.mesh.v1.Registry/{name}" for name in ("Lookup", "TakePrekeys")]
        table = AuthorizationTable({name: [SANDBOXES] for name in ("kars.mesh.v1.Relay/Attach", *names)})
        server = RpcServer(StaticSvidSource(self.authority.service("relay")), table, address)
        server.add(relay_pb2_grpc.add_RelayServicer_to_server, self)
        server.add(registry_pb2_grpc.add_RegistryServicer_to_server, self)
        self.endpoint = f"127.0.0.1:{await server.start()}"
        self._server = server

    async def stop(self) -> None:
        """Go away."""
        if self._server is not None:
            await self._server.stop(0)

    @property
    def streams(self) -> int:
        """Return how many clients are attached."""
        return len(self._out)

    def say(self, response: relay_pb2.AttachResponse | KarsError) -> None:
        """Send a frame to whoever is attached, or end every stream with an error."""
        for queue in self._out:
            queue.put_nowait(response)

    def deliver(self, sender: str, *payloads: bytes, first_seq: int = 1) -> None:
        """Send a delivery."""
        envelopes = [relay_pb2.Envelope(id=os.urandom(16), payload=payload) for payload in payloads]
        delivery = relay_pb2.Delivery(sender=sender, envelopes=envelopes, first_seq=first_seq)
        self.say(relay_pb2.AttachResponse(deliveries=[delivery]))

    async def Attach(  # noqa: N802 - named by the contract
        self,
        request_iterator: AsyncIterator[relay_pb2.AttachRequest],
        context: Any,  # noqa: ANN401 - grpc's
    ) -> AsyncIterator[relay_pb2.AttachResponse]:
        """Serve one client."""
        out: asyncio.Queue[relay_pb2.AttachResponse | KarsError] = asyncio.Queue()
        self._out.append(out)
        reader = asyncio.create_task(
            self._read(request_iterator, out, str(caller(context))), name="read client"
        )
        try:
            yield relay_pb2.AttachResponse(hello=relay_pb2.Hello(nonce=os.urandom(32), relay=RELAY))
            while True:
                item = await out.get()
                if isinstance(item, KarsError):
                    raise item
                yield item
        finally:
            self._out.remove(out)
            reader.cancel()

    async def Lookup(  # noqa: N802 - named by the contract
        self,
        request: registry_pb2.LookupRequest,
        context: Any,  # noqa: ANN401 - grpc's
    ) -> registry_pb2.LookupResponse:
        """Know one peer."""
        self.lookups.append(request.peer)
        self.callers.append(str(caller(context)))
        if not request.peer.endswith("/friend"):
            raise NotFoundError("peer_not_found", "no such peer")
        return registry_pb2.LookupResponse(may_write=True, edge_score=700)

    async def _read(
        self,
        requests: AsyncIterator[relay_pb2.AttachRequest],
        out: "asyncio.Queue[relay_pb2.AttachResponse | KarsError]",
        client: str,
    ) -> None:
        number = 0
        async for request in requests:
            self.heard.append(request)
            if request.HasField("connect"):
                self.connected.put_nowait(client)
                if self.refuse_connect is not None:
                    out.put_nowait(self.refuse_connect)
                    return
                welcome = relay_pb2.Welcome(
                    max_in_flight_envelopes=self.window, max_in_flight_bytes=1 << 20, max_ttl_s=60
                )
                out.put_nowait(relay_pb2.AttachResponse(welcome=welcome))
            if request.ack_through:
                self.acked.put_nowait(request.ack_through)
            refusals = []
            for submission in request.submissions:
                if submission.to in self.refuse:
                    refusals.append(
                        relay_pb2.Refusal(
                            number=number + 1,
                            count=len(submission.envelopes),
                            reason=self.refuse[submission.to],
                        )
                    )
                number += len(submission.envelopes)
            if request.submissions and not self.silent:
                receipt = relay_pb2.Receipt(decided_through=number, refusals=refusals)
                out.put_nowait(relay_pb2.AttachResponse(receipt=receipt))


def gone() -> UnavailableError:
    """Return the error with which a relay that stops ends its streams."""
    return UnavailableError("server_stopping", "the relay stops")
