"""Connections to the controller and to routers, as this operator; and the way from a command into asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from kars.policy.v1 import policy_pb2
from kars.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from kars_common.errors import FailedPreconditionError, UnavailableError
from kars_common.identity import FileSvidSource
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.spiffe import SpiffeId

from kars_cli import home
from kars_cli.local import services

if TYPE_CHECKING:
    from kars.sandbox.v1.sandbox_pb2_grpc import SandboxesAsyncStub

_Stub = TypeVar("_Stub")
_P = ParamSpec("_P")
_Result = TypeVar("_Result")


def command(function: Callable[_P, Coroutine[Any, Any, _Result]]) -> Callable[_P, _Result]:
    """Run an async command; what gRPC raises becomes a KarsError."""

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _Result:
        async def body() -> _Result:
            with mapped_errors():
                return await function(*args, **kwargs)

        return asyncio.run(body())

    return run


class Session:
    """One command's connections. Use `Session.open`."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.home = directory
        self._stack = stack
        self._endpoints = home.endpoints(directory)
        self._source = FileSvidSource(directory / "cli")
        self._relay: PeerChannel | None = None
        self._controller = self._channel(self._endpoints.controller, self._endpoints.dns_name)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Session"]:
        """Connect as the operator of this machine.

        Raises:
            UnavailableError: `platform_not_running`; `svid_unavailable` at the first call.
        """
        async with AsyncExitStack() as stack:
            yield cls(home.state_dir(), stack)

    @property
    def trust_domain(self) -> str:
        """SPIFFE trust domain of the platform."""
        return self._endpoints.trust_domain

    def controller(self, factory: Callable[[Any], _Stub]) -> _Stub:
        """Return a stub on the controller."""
        return self._controller.stub(factory)

    @property
    def relay_endpoint(self) -> str:
        """Where the mesh relay of this platform listens.

        Raises:
            UnavailableError: `relay_not_running`.
        """
        for service in services.found(self.home):
            if service.name == "relay" and service.running and service.endpoint:
                return service.endpoint
        raise UnavailableError("relay_not_running", "the mesh relay does not run; kars dev starts it")

    def relay(self, factory: Callable[[Any], _Stub]) -> _Stub:
        """Return a stub on the mesh relay.

        Raises:
            UnavailableError: `relay_not_running`.
        """
        if self._relay is None:
            name = SpiffeId.service(self.trust_domain, "relay").dns_name
            self._relay = self._channel(self.relay_endpoint, name)
        return self._relay.stub(factory)

    async def router(self, namespace: str, name: str) -> "Router":
        """Return a sandbox's router.

        Raises:
            NotFoundError: `sandbox_not_found`.
            FailedPreconditionError: `router_not_running`.
        """
        stub = cast("SandboxesAsyncStub", self.controller(sandbox_pb2_grpc.SandboxesStub))
        sandbox = policy_pb2.SandboxRef(namespace=namespace, name=name)
        found = await stub.GetSandbox(sandbox_pb2.GetSandboxRequest(sandbox=sandbox))
        if not found.router_endpoint:
            raise FailedPreconditionError(
                "router_not_running", f"the router of {namespace}/{name} is not running"
            )
        identity = SpiffeId.sandbox(self.trust_domain, namespace, name)
        return Router(self._channel(found.router_endpoint, identity.dns_name), sandbox, str(identity))

    def egress(self, factory: Callable[[Any], _Stub]) -> _Stub:
        """Return a stub on the egress service.

        Raises:
            UnavailableError: `egress_not_running`: no egress service was started here.
        """
        identity = SpiffeId.service(self.trust_domain, "egress")
        return self._channel(home.egress_endpoint(self.home), identity.dns_name).stub(factory)

    def _channel(self, endpoint: str, dns_name: str) -> PeerChannel:
        channel = PeerChannel(self._source, endpoint, dns_name)
        self._stack.push_async_callback(channel.close)
        return channel


class Router:
    """One sandbox's router, reached directly."""

    def __init__(self, channel: PeerChannel, sandbox: policy_pb2.SandboxRef, identity: str) -> None:
        self._channel = channel
        self.sandbox = sandbox
        self.identity = identity

    def stub(self, factory: Callable[[Any], _Stub]) -> _Stub:
        """Return a stub on the router."""
        return self._channel.stub(factory)
