"""A controller as the gateway sees it, in a thread of its own: it pushes bundles and notes the answers."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.a2a.v1 import policy_pb2
from kars.policy.v1 import policy_pb2 as bundle_pb2
from kars.policy.v1 import policy_pb2_grpc
from kars_common.policy import canonical_payload, dump_keys, key_id, sign
from kars_common.rpc import AuthorizationTable, RpcServer
from kars_common.testing import MemoryAuthority, StaticSvidSource

from kars_a2a_gateway_testkit.policies import bundle

_TABLE = AuthorizationTable({"kars.policy.v1.PolicyDiscovery/Watch": ["svc/a2a-gateway"]})


class GatewayController(policy_pb2_grpc.PolicyDiscoveryServicer):
    """Serves the policy watch of one gateway."""

    def __init__(self, authority: MemoryAuthority) -> None:
        self.signer = Ed25519PrivateKey.generate()
        self.answers: queue.SimpleQueue[bundle_pb2.WatchRequest] = queue.SimpleQueue()
        self.version = 0
        self.endpoint = ""
        self._authority = authority
        self._current: bundle_pb2.SignedBundle | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._changed: asyncio.Condition
        self._server: RpcServer

    @property
    def keys_file(self) -> bytes:
        """The policy keys, as the gateway reads them."""
        public = self.signer.public_key()
        return dump_keys({key_id(public): public})

    def start(self) -> None:
        """Serve on a free port."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="controller", daemon=True)
        self._thread.start()
        self._call(self._start())

    def stop(self) -> None:
        """End."""
        self._call(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def publish(
        self, policy: policy_pb2.GatewayPolicy, *, wait: bool = True
    ) -> bundle_pb2.WatchRequest | None:
        """Publish a policy as the next version; returns the gateway's answer unless told not to wait."""
        self.version += 1
        signed = sign(canonical_payload(bundle(self.version, policy)), self.signer)
        return self.push(signed, wait=wait)

    def push(self, signed: bundle_pb2.SignedBundle, *, wait: bool = True) -> bundle_pb2.WatchRequest | None:
        """Push any bundle."""
        while not self.answers.empty():
            self.answers.get()
        self._call(self._push(signed))
        return self.answers.get(timeout=10) if wait else None

    async def Watch(  # noqa: N802  # named by the contract
        self,
        request_iterator: AsyncIterator[bundle_pb2.WatchRequest],
        context: Any,  # noqa: ANN401, ARG002  # grpc's
    ) -> AsyncIterator[bundle_pb2.WatchResponse]:
        """Send every bundle that is published from now on, and the one that was."""
        requests = aiter(request_iterator)
        await anext(requests)
        sent: bundle_pb2.SignedBundle | None = None
        while True:
            async with self._changed:
                while self._current is sent:
                    await self._changed.wait()
                sent = self._current
            yield bundle_pb2.WatchResponse(bundle=sent)
            self.answers.put(await anext(requests))

    async def GetSigningKeys(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802  # grpc's
        """Not asked for."""
        raise NotImplementedError

    async def _start(self) -> None:
        self._changed = asyncio.Condition()
        source = StaticSvidSource(self._authority.service("controller"))
        self._server = RpcServer(source, _TABLE, "127.0.0.1:0")
        self._server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, self)
        self.endpoint = f"127.0.0.1:{await self._server.start()}"

    async def _push(self, signed: bundle_pb2.SignedBundle) -> None:
        async with self._changed:
            self._current = signed
            self._changed.notify_all()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.result(10)
