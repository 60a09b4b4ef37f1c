"""Calls to routers: one channel for each, proven both ways, and errors as callers may see them.

A router proves the name of its sandbox (`<name>.<namespace>.sandbox.<trust domain>`), so an endpoint that was
taken over by something else gets nothing.
"""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Protocol

import grpc
from kars.a2a.v1 import delivery_pb2, delivery_pb2_grpc, policy_pb2
from kars_common.errors import KarsError
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.spiffe import SpiffeId
from kars_common.svid import SvidSource

from kars_a2a_gateway import errors
from kars_a2a_gateway.callers.principals import Principal, PrincipalKind
from kars_a2a_gateway.policy.exposures import Exposure

if TYPE_CHECKING:
    from kars.a2a.v1.delivery_pb2_grpc import AgentDeliveryAsyncStub

_KINDS = {
    PrincipalKind.ANONYMOUS: delivery_pb2.PRINCIPAL_KIND_ANONYMOUS,
    PrincipalKind.CERTIFICATE: delivery_pb2.PRINCIPAL_KIND_CERTIFICATE,
    PrincipalKind.TOKEN: delivery_pb2.PRINCIPAL_KIND_TOKEN,
    PrincipalKind.API_KEY: delivery_pb2.PRINCIPAL_KIND_API_KEY,
}


class Agents(Protocol):
    """What the domain needs of the way inside."""

    async def call(
        self,
        exposure: Exposure,
        envelope: delivery_pb2.Envelope,
        method: "delivery_pb2.CallMethod.ValueType",
        request: bytes,
    ) -> bytes:
        """Ask for one answer."""
        ...

    def run(
        self, exposure: Exposure, request: delivery_pb2.RunRequest
    ) -> AsyncGenerator[delivery_pb2.RunResponse, None]:
        """Send or follow."""
        ...


class Delivery:
    """Channels to every router that policy names. Close when done."""

    def __init__(self, source: SvidSource, trust_domain: str, timeout_s: float) -> None:
        self._source = source
        self._trust_domain = trust_domain
        self._timeout_s = timeout_s
        self._channels: dict[tuple[str, str], PeerChannel] = {}

    async def call(
        self,
        exposure: Exposure,
        envelope: delivery_pb2.Envelope,
        method: "delivery_pb2.CallMethod.ValueType",
        request: bytes,
    ) -> bytes:
        """Ask for one answer.

        Raises:
            A2AError: what the caller is told.
        """
        stub = self._stub(exposure)
        try:
            with mapped_errors():
                response = await stub.Call(
                    delivery_pb2.CallRequest(envelope=envelope, method=method, request=request),
                    timeout=self._timeout_s,
                )
        except KarsError as exc:
            raise errors.from_agent(exc) from exc
        return response.response

    async def run(
        self, exposure: Exposure, request: delivery_pb2.RunRequest
    ) -> AsyncGenerator[delivery_pb2.RunResponse, None]:
        """Send a message or follow a task; ends when the task rests.

        Raises:
            A2AError: what the caller is told.
        """
        call: grpc.aio.UnaryStreamCall[delivery_pb2.RunRequest, delivery_pb2.RunResponse] | None = None
        try:
            with mapped_errors():
                call = self._stub(exposure).Run(request)
                # Read instead of iterated: the iterator of grpc.aio swallows what cannot be parsed.
                while isinstance(response := await call.read(), delivery_pb2.RunResponse):
                    yield response
                if await call.code() is not grpc.StatusCode.OK:
                    raise errors.unavailable("the way to the agent broke")
        except KarsError as exc:
            raise errors.from_agent(exc) from exc
        finally:
            if call is not None:
                call.cancel()

    async def keep_only(self, exposures: set[tuple[str, str]]) -> None:
        """Close channels to routers that policy names no longer."""
        for key in [key for key in self._channels if key not in exposures]:
            await self._channels.pop(key).close(grace_s=1.0)

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close()

    def _stub(self, exposure: Exposure) -> "AgentDeliveryAsyncStub":
        key = (exposure.agent, exposure.endpoint)
        channel = self._channels.get(key)
        if channel is None:
            peer = SpiffeId.sandbox(self._trust_domain, exposure.namespace, exposure.name)
            channel = self._channels[key] = PeerChannel(
                self._source, exposure.endpoint, peer.dns_name, timeout_s=self._timeout_s
            )
        return channel.stub(delivery_pb2_grpc.AgentDeliveryStub)


def envelope(
    exposure: Exposure,
    principal: Principal,
    call_id: str,
    extensions: tuple[str, ...] = (),
    traceparent: str = "",
) -> delivery_pb2.Envelope:
    """Return what the gateway vouches for."""
    return delivery_pb2.Envelope(
        agent=policy_pb2.AgentRef(namespace=exposure.namespace, name=exposure.name),
        principal=delivery_pb2.Principal(
            kind=_KINDS[principal.kind],
            id=principal.id,
            scopes=sorted(principal.scopes),
            skills=sorted(principal.skills or ()),
        ),
        call_id=call_id,
        traceparent=traceparent,
        extensions=extensions,
    )
