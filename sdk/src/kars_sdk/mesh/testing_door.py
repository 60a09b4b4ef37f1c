"""A router's door for tests: an ASGI application in front of a mesh in memory, for one agent."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kars.mesh.v1 import identity_pb2, registry_pb2, relay_pb2

from kars_sdk.mesh.errors import TransportError
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.testing_mesh import MemoryLink, MemoryMesh
from kars_sdk.mesh.transport import Outgoing

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


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
