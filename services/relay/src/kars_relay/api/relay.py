"""The Relay service: the stream that peers attach with.

Registered as a generic handler, so that frames arrive and leave as the bytes they are: decoding every
envelope to forward it would cost a sixth more and prove nothing.
"""

import asyncio
import os
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from kars.mesh.v1 import relay_pb2
from kars_common.errors import (
    DeadlineExceededError,
    InvalidInputError,
    KarsError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from kars_common.rpc import caller
from kars_common.spiffe import SpiffeId

from kars_relay.frames.scanning import MAX_FRAME_BYTES
from kars_relay.identity import Statement, check_connect_proof, verify_statement
from kars_relay.mailbox.base import DEDUPE_IDS
from kars_relay.metrics import RelayMetrics
from kars_relay.policy import MeshPolicy
from kars_relay.recorder import Recorder
from kars_relay.routing import Exchange, Hub, Session, SessionLimits
from kars_relay.routing.exchange import MAX_PAYLOAD_BYTES

SERVICE = "kars.mesh.v1.Relay"

Context = Any


class _Stream:
    """A gRPC stream as a session's transport."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.write = context.write

    async def read(self) -> bytes | None:
        frame = await self._context.read()
        return None if frame is grpc.aio.EOF else frame


class RelayDoor:
    """Serves `Relay.Attach`."""

    def __init__(
        self,
        *,
        relay: SpiffeId,
        policy: MeshPolicy,
        exchange: Exchange,
        hub: Hub,
        recorder: Recorder,
        metrics: RelayMetrics,
        limits: SessionLimits,
        connect_timeout_s: float,
    ) -> None:
        self._relay = str(relay)
        self._policy = policy
        self._exchange = exchange
        self._hub = hub
        self._recorder = recorder
        self._metrics = metrics
        self._limits = limits
        self._connect_timeout_s = connect_timeout_s

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server, as the generated `add_..._to_server` would."""
        attach: Any = grpc.stream_stream_rpc_method_handler(self.attach)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Attach": attach}),))

    async def attach(self, _requests: object, context: Context) -> None:
        """Serve one connection."""
        identity = caller(context)
        stream = _Stream(context)
        try:
            await self._serve(identity, stream)
            self._metrics.ended("left")
        except KarsError as error:
            self._metrics.ended(error.reason)
            self._recorder.refused("mesh.attachment_ended", error.reason, str(identity))
            raise

    async def _serve(self, identity: SpiffeId, stream: _Stream) -> None:
        self._policy.require()
        connect, statement = await self._handshake(identity, stream)
        peer = str(identity)
        known = await self._exchange.store.ensure(peer, statement.serial)
        if statement.serial < known:
            raise UnauthenticatedError(
                "identity_superseded", "a newer identity statement of this peer was seen", _code(4005)
            )
        sender = self._exchange.sender(identity)
        session = Session(
            peer,
            sender,
            exchange=self._exchange,
            transport=stream,
            limits=self._limits,
            metrics=self._metrics,
        )
        session.set_window(connect.window)
        welcome = await self._welcome(peer)
        self._hub.attach(peer, session)
        try:
            await session.run(welcome.SerializeToString(), _loop_time(statement.not_after))
        finally:
            self._hub.detach(peer, session)

    async def _handshake(self, identity: SpiffeId, stream: _Stream) -> tuple[relay_pb2.Connect, Statement]:
        nonce = os.urandom(32)
        hello = relay_pb2.AttachResponse(hello=relay_pb2.Hello(nonce=nonce, relay=self._relay))
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await stream.write(hello.SerializeToString())
                frame = await stream.read()
        except TimeoutError as exc:
            raise DeadlineExceededError(
                "connect_timeout", f"no connect within {self._connect_timeout_s:.0f} s", _code(4001)
            ) from exc
        connect = _connect(frame)
        if not connect.peer:
            raise InvalidInputError("peer_missing", "connect names no peer", _code(4002))
        if connect.peer != str(identity):
            raise PermissionDeniedError(
                "peer_mismatch", f"the certificate is of {identity}, connect names another peer", _code(4003)
            )
        try:
            statement = verify_statement(connect.identity, self._policy.require().statement_keys)
            if statement.peer != identity:
                raise PermissionDeniedError(
                    "peer_mismatch", "the identity statement is about another peer", _code(4003)
                )
            check_connect_proof(
                statement.identity_key, connect.proof, nonce=nonce, relay=self._relay, peer=connect.peer
            )
        except UnauthenticatedError as error:
            raise UnauthenticatedError(error.reason, error.message, _code(4005)) from None
        return connect, statement

    async def _welcome(self, peer: str) -> relay_pb2.AttachResponse:
        return relay_pb2.AttachResponse(
            welcome=relay_pb2.Welcome(
                max_in_flight_envelopes=self._limits.max_in_flight_envelopes,
                max_in_flight_bytes=self._limits.max_in_flight_bytes,
                max_payload_bytes=MAX_PAYLOAD_BYTES,
                max_ttl_s=self._policy.require().max_ttl_s,
                dedupe_window_envelopes=DEDUPE_IDS,
                acked_through=await self._exchange.store.acked_through(peer),
            )
        )


def _connect(frame: bytes | None) -> relay_pb2.Connect:
    refusal = InvalidInputError(
        "connect_expected", "the first frame must carry connect and nothing else", _code(4001)
    )
    if frame is None or len(frame) > MAX_FRAME_BYTES:
        raise refusal
    try:
        request = relay_pb2.AttachRequest.FromString(frame)
    except DecodeError:
        raise refusal from None
    if [field.name for field, _ in request.ListFields()] != ["connect"]:
        raise refusal
    return request.connect


def _code(number: int) -> dict[str, str]:
    return {"close_code": str(number)}


def _loop_time(moment: datetime) -> float:
    """Return the loop's time at a moment of the wall clock."""
    remaining = (moment - datetime.now(UTC)).total_seconds()
    return asyncio.get_running_loop().time() + remaining
