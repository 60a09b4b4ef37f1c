"""Channels of the mesh: to the relay that policy names, to the controller for identity statements."""

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message
from kars.mesh.v1 import identity_pb2, identity_pb2_grpc, registry_pb2, registry_pb2_grpc
from kars_common.errors import InvalidInputError, UnavailableError
from kars_common.identity import SvidSource
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.spiffe import SpiffeId

from kars_router.mesh.access import MeshAccess

_TIMEOUT_S = 10.0
REGISTRY_METHODS: Mapping[str, type[Message]] = {
    method.name: message_factory.GetMessageClass(method.input_type)
    for method in registry_pb2.DESCRIPTOR.services_by_name["Registry"].methods
}
"""What the registry serves, and what each method takes."""


class MeshLink:
    """Opens channels when they are needed, and others when policy names another relay."""

    def __init__(
        self,
        source: SvidSource,
        controller: PeerChannel,
        trust_domain: str,
        access: Callable[[], MeshAccess | None],
    ) -> None:
        self._source = source
        self._controller = controller
        self._dns_name = SpiffeId.service(trust_domain, "relay").dns_name
        self._access = access
        self._endpoint = ""
        self._relay: PeerChannel | None = None
        self._retired: list[PeerChannel] = []

    def relay(self) -> PeerChannel:
        """Return the channel to the relay.

        Raises:
            UnavailableError: `relay_not_configured`: policy names none.
        """
        access = self._access()
        if access is None or not access.relay_endpoint:
            raise UnavailableError("relay_not_configured", "no relay runs for this sandbox")
        if self._relay is None or access.relay_endpoint != self._endpoint:
            if self._relay is not None:
                self._retired.append(self._relay)
            self._endpoint = access.relay_endpoint
            self._relay = PeerChannel(self._source, self._endpoint, self._dns_name, timeout_s=_TIMEOUT_S)
        return self._relay

    async def issue_statement(self, request: identity_pb2.IssueStatementRequest) -> Message:
        """Ask the controller for a statement about this sandbox.

        Raises:
            KarsError: with the controller's reason.
        """
        with mapped_errors():
            stub: Any = self._controller.stub(identity_pb2_grpc.MeshIdentityStub)
            response: Message = await stub.IssueStatement(request)
            return response

    async def registry(self, method: str, request: Message) -> Message:
        """Call a method of the registry.

        Raises:
            KarsError: with the registry's reason.
        """
        with mapped_errors():
            stub = self.relay().stub(registry_pb2_grpc.RegistryStub)
            response: Message = await getattr(stub, method)(request)
            return response

    async def close(self) -> None:
        """Close what was opened to relays."""
        for channel in (*self._retired, *([self._relay] if self._relay is not None else ())):
            await channel.close()


def parse(kind: type[Message], body: bytes) -> Message:
    """Return the message in a body.

    Raises:
        InvalidInputError: `frame_malformed`.
    """
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise InvalidInputError("frame_malformed", f"the body is no {kind.__name__}") from None
    return message
