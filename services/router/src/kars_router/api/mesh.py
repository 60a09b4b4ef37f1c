"""`/mesh/v1/*`: the agent's door to the mesh. Decode, make a call, walk the path, encode. See MESH.md."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.message import Message
from kars.mesh.v1 import identity_pb2, relay_pb2
from kars_common.errors import InvalidInputError, KarsError

from kars_router.api import wire
from kars_router.api.body import BodyError, DisconnectedError, read_binary_body
from kars_router.api.chat import HttpRelease
from kars_router.mesh import frames, link
from kars_router.mesh.access import MAX_NAME_BYTES
from kars_router.mesh.bridge import Attachment, Bridge
from kars_router.mesh.calls import MeshCall
from kars_router.mesh.frames import FrameError, Outgoing
from kars_router.mesh.gate import denial_of
from kars_router.mesh.link import REGISTRY_METHODS, MeshLink
from kars_router.pipeline.call import CallerGoneError
from kars_router.pipeline.door import Door
from kars_router.pipeline.path import Path
from kars_router.pipeline.verdicts import Decision, Deny

_PROTOBUF = b"application/x-protobuf"
_FRAMES = b"application/x-kars-mesh-frames"
_KEEPALIVE_S = 15.0
_WRITE_TIMEOUT_S = 60.0
_IDENTITY_BYTES = 4096
_ROOT = "/mesh/v1/"


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One request of the agent, read."""

    receive: wire.Receive
    send: wire.Send
    headers: wire.Headers
    trace: str
    body: bytes = b""


class MeshEndpoints:
    """Serves the mesh of one door."""

    def __init__(self, door: Door, path: Path, bridge: Bridge, mesh_link: MeshLink) -> None:
        self._door = door
        self._path = path
        self._bridge = bridge
        self._link = mesh_link
        self._routes: dict[str, tuple[str, Callable[[_Request], Awaitable[Deny | None]]]] = {
            "policy": ("GET", self._policy),
            "status": ("GET", self._status),
            "identity": ("POST", self._identity),
            "deliver": ("GET", self._deliver),
            "submit": ("POST", self._submit),
            "ack": ("POST", self._ack),
        }

    async def __call__(
        self, scope: wire.Scope, receive: wire.Receive, send: wire.Send, trace: str
    ) -> Deny | None:
        """Serve one request; returns the denial of one that never became a call."""
        headers: wire.Headers = [(wire.TRACE_HEADER, trace.encode())]
        name = scope["path"].removeprefix(_ROOT)
        method = name.removeprefix("registry/")
        if method != name and method in REGISTRY_METHODS:
            verb, serve = "POST", self._registry_method(method)
        elif name in self._routes:
            verb, serve = self._routes[name]
        else:
            return await _refuse(
                send, wire.bad_request(404, "route_not_found", "this door does not serve that path"), headers
            )
        if scope["method"] != verb:
            denial = wire.bad_request(405, "method_not_allowed", f"use {verb}")
            return await _refuse(send, denial, [*headers, (b"allow", verb.encode())])
        with self._door.room.lease() as lease:
            body = b""
            if verb == "POST":
                limit = _IDENTITY_BYTES if name == "identity" else frames.MAX_FRAME_BYTES
                try:
                    body = await read_binary_body(scope, receive, limit, lease, _PROTOBUF)
                except BodyError as exc:
                    return await _refuse(send, exc.denial, [*headers, (b"connection", b"close")])
            try:
                return await serve(
                    _Request(receive=receive, send=send, headers=headers, trace=trace, body=body)
                )
            except FrameError as exc:
                return await _refuse(send, wire.bad_request(400, exc.code, str(exc)), headers)
            except InvalidInputError as exc:
                return await _refuse(send, wire.bad_request(400, exc.reason, exc.message), headers)

    async def _policy(self, request: _Request) -> Deny | None:
        """Say what the agent goes by when a peer knocks; without policy, nobody is let in."""
        policy = self._door.policy
        access = policy.mesh if policy is not None else None
        document = access.document() if access is not None else {"requireEdge": True, "edges": []}
        await wire.respond(request.send, 200, orjson.dumps(document), request.headers, b"application/json")
        return None

    async def _status(self, request: _Request) -> Deny | None:
        policy, end = self._door.policy, self._bridge.last_end
        access = policy.mesh if policy is not None else None
        document = {
            "peer": access.peer if access is not None else "",
            "state": self._bridge.state,
            "relay": self._bridge.relay,
            "lastEnd": None
            if end is None
            else {"reason": end.reason, "message": end.message, "closeCode": end.close_code},
        }
        await wire.respond(request.send, 200, orjson.dumps(document), request.headers, b"application/json")
        return None

    async def _identity(self, request: _Request) -> Deny | None:
        message = link.parse(identity_pb2.IssueStatementRequest, request.body)
        assert isinstance(message, identity_pb2.IssueStatementRequest)
        await self._answer(request, "identity", lambda: self._link.issue_statement(message))
        return None

    def _registry_method(self, method: str) -> Callable[[_Request], Awaitable[Deny | None]]:
        async def serve(request: _Request) -> Deny | None:
            message = link.parse(REGISTRY_METHODS[method], request.body)
            peer = str(getattr(message, "peer", ""))
            if peer and len(peer) > MAX_NAME_BYTES:
                raise FrameError("peer_invalid", "a peer is named by its SPIFFE id")
            await self._answer(
                request, f"registry:{method}", lambda: self._link.registry(method, message), peer
            )
            return None

        return serve

    async def _answer(
        self, request: _Request, operation: str, perform: Callable[[], Awaitable[Message]], peer: str = ""
    ) -> None:
        """Walk one call and send the message that it results in."""
        call = await self._walk(request, operation, perform, peer=peer, size_bytes=len(request.body))
        if isinstance(call, MeshCall):
            await wire.respond(request.send, 200, call.result.SerializeToString(), request.headers, _PROTOBUF)
        elif call is not None:
            await wire.refuse(request.send, call, request.headers)

    async def _submit(self, request: _Request) -> Deny | None:
        frame = frames.parse(request.body)
        if frames.is_connect(frame):

            async def welcome() -> relay_pb2.AttachResponse:
                return relay_pb2.AttachResponse(welcome=await self._bridge.connect(frame.connect))

            await self._answer(request, "connect", welcome)
            return None
        outgoing = frames.outgoing(frame)
        refusals: list[relay_pb2.Refusal] = []
        denials: list[Deny] = []
        for item in outgoing:
            # One after the other: each recipient is a call of its own, and their order is kept.
            ended = await self._send_one(request, item)
            if ended is None:
                return None
            if isinstance(ended, Deny):
                denials.append(ended)
                refusals += _refusals_of(ended, item)
            else:
                refusals += ended
        if len(denials) == len(outgoing):
            await wire.refuse(request.send, denials[0], request.headers)
            return None
        total = sum(len(item.numbers) for item in outgoing)
        receipt = relay_pb2.Receipt(
            decided_through=total, refusals=sorted(refusals, key=lambda refusal: refusal.number)
        )
        answer = relay_pb2.AttachResponse(receipt=receipt).SerializeToString()
        await wire.respond(request.send, 200, answer, request.headers, _PROTOBUF)
        return None

    async def _send_one(self, request: _Request, item: Outgoing) -> list[relay_pb2.Refusal] | Deny | None:
        """Send to one recipient; None when the caller hung up."""
        call = await self._walk(
            request,
            "send",
            lambda: self._bridge.submit(item.submissions),
            peer=item.recipient,
            size_bytes=item.size_bytes,
            envelopes=len(item.numbers),
        )
        if not isinstance(call, MeshCall):
            return call
        found: list[relay_pb2.Refusal] = []
        for refusal in call.result:
            numbers = item.numbers[refusal.number - 1 : refusal.number - 1 + refusal.count]
            found += [
                relay_pb2.Refusal(
                    number=number, count=1, reason=refusal.reason, retry_after_ms=refusal.retry_after_ms
                )
                for number in numbers
            ]
        return found

    async def _ack(self, request: _Request) -> Deny | None:
        frame = frames.parse(request.body)
        frames.check_ack(frame)
        try:
            await self._bridge.acknowledge(frame)
        except KarsError as exc:
            await wire.refuse(request.send, denial_of(exc), request.headers)
            return None
        await request.send({"type": "http.response.start", "status": 204, "headers": request.headers})
        await request.send({"type": "http.response.body", "body": b""})
        return None

    async def _deliver(self, request: _Request) -> Deny | None:
        begun: list[Attachment] = []

        async def attach() -> None:
            begun.append(self._bridge.attach())

        call = await self._walk(request, "receive", attach)
        if not isinstance(call, MeshCall):
            for attachment in begun:
                await attachment.close()  # begun, and then not recorded
            if call is not None:
                await wire.refuse(request.send, call, request.headers)
            return None
        (attachment,) = begun
        gone = asyncio.create_task(_wait_gone(request.receive), name="watch mesh reader")
        try:
            await self._stream(request, attachment, gone)
        except (TimeoutError, DisconnectedError):
            pass  # it does not read, or it left: what was not acknowledged comes again
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            await attachment.close()
        return None

    async def _stream(self, request: _Request, attachment: Attachment, gone: "asyncio.Task[None]") -> None:
        head = [(b"content-type", _FRAMES), (b"cache-control", b"no-cache"), *request.headers]
        await request.send({"type": "http.response.start", "status": 200, "headers": head})
        while True:
            waiting = asyncio.create_task(attachment.inbox.get(), name="next mesh frame")
            try:
                await asyncio.wait({waiting, gone}, timeout=_KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise DisconnectedError
                frame = waiting.result() if waiting.done() else b""
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            if frame is None:
                break
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                # An empty frame is a keep-alive: a reader that is gone shows itself.
                body = struct.pack(">I", len(frame)) + frame
                await request.send({"type": "http.response.body", "body": body, "more_body": True})
        await request.send({"type": "http.response.body", "body": b""})

    async def _walk(
        self,
        request: _Request,
        operation: str,
        perform: Callable[[], Awaitable[Any]],
        *,
        peer: str = "",
        size_bytes: int = 0,
        envelopes: int = 0,
    ) -> MeshCall | Deny | None:
        """Walk one call; returns it when it was done, its denial, or None when the caller hung up."""
        release = HttpRelease(request.receive, request.send, request.headers, stream=False)
        call = MeshCall(
            door=self._door,
            release=release,
            trace_id=request.trace,
            operation=operation,
            perform=perform,
            peer=peer,
            size_bytes=size_bytes,
            envelopes=envelopes,
        )
        try:
            outcome = await self._path.run(call)
        except CallerGoneError:
            return None  # settled and recorded; nobody is there to be told
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not release.hung_up or task is None:
                raise
            task.uncancel()
            return None
        finally:
            await release.close()
        return call if outcome.denial is None else outcome.denial


def _refusals_of(denial: Deny, item: Outgoing) -> list[relay_pb2.Refusal]:
    """Return a denied recipient's envelopes as a receipt says it."""
    limited = denial.decision is Decision.RATE_LIMITED
    reason = relay_pb2.REFUSAL_REASON_SENDER_RATE if limited else relay_pb2.REFUSAL_REASON_EDGE_FORBIDDEN
    retry_ms = int((denial.retry_after_s or 0) * 1000)
    return [
        relay_pb2.Refusal(number=number, count=1, reason=reason, retry_after_ms=retry_ms)
        for number in item.numbers
    ]


async def _refuse(send: wire.Send, denial: Deny, headers: wire.Headers) -> Deny:
    await wire.refuse(send, denial, headers)
    return denial


async def _wait_gone(receive: wire.Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
