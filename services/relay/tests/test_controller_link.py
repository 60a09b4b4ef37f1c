"""Policy from a controller that is there: it comes into force while peers talk, and a wrong one does not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kars.mesh.v1 import policy_pb2 as mesh_pb2
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.rpc import ANY_IDENTITY, AuthorizationTable, RpcServer
from kars_common.testing import StaticSvidSource
from kars_relay_testkit import MeshWorld, PeerStream, RelayProcess, channel, edges
from kars_relay_testkit.house import texts

TABLE = AuthorizationTable(
    {
        "kars.policy.v1.PolicyDiscovery/Watch": ["svc/relay"],
        "kars.policy.v1.PolicyDiscovery/GetSigningKeys": [ANY_IDENTITY],
    }
)


class Discovery(policy_pb2_grpc.PolicyDiscoveryServicer):
    """A controller as far as the relay's policy goes."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[policy_pb2.SignedBundle] = asyncio.Queue()
        self.answers: asyncio.Queue[policy_pb2.WatchRequest] = asyncio.Queue()
        self.subscribed: list[policy_pb2.Subscribe] = []

    async def Watch(  # noqa: N802 - named by the contract
        self, requests: AsyncIterator[policy_pb2.WatchRequest], context: Any
    ) -> AsyncIterator[policy_pb2.WatchResponse]:
        self.subscribed.append((await anext(aiter(requests))).subscribe)
        while True:
            yield policy_pb2.WatchResponse(bundle=await self.queue.get())
            await self.answers.put(await anext(aiter(requests)))

    async def GetSigningKeys(  # noqa: N802 - named by the contract
        self, request: policy_pb2.GetSigningKeysRequest, context: Any
    ) -> policy_pb2.GetSigningKeysResponse:
        return policy_pb2.GetSigningKeysResponse()  # the relay has its keys from a file

    async def publish(self, bundle: policy_pb2.SignedBundle) -> policy_pb2.WatchRequest:
        await self.queue.put(bundle)
        async with asyncio.timeout(10):
            return await self.answers.get()


async def test_policy_is_swapped_live_acknowledged_and_refused_when_wrong(tmp_path: Path) -> None:
    world = MeshWorld()
    world.write_relay(tmp_path, None)
    discovery = Discovery()
    server = RpcServer(StaticSvidSource(world.authority.service("controller")), TABLE, "127.0.0.1:0")
    server.add(policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server, discovery)
    port = await server.start()
    settings = {"CONTROLLER_ENDPOINT": f"127.0.0.1:{port}"}
    alice, bob = world.peer("alice"), world.peer("bob")
    with RelayProcess(directory=tmp_path, settings=settings) as relay:
        await asyncio.get_running_loop().run_in_executor(None, relay.start)
        answer = await discovery.publish(world.bundle(world.rules(edges((bob, alice)))))
        assert answer.ack.version == 1
        assert discovery.subscribed[0].sandbox == policy_pb2.SandboxRef(namespace="svc", name="relay")
        main = relay.ports["main"]
        async with PeerStream(bob, main) as receiver, PeerStream(alice, main) as sender:
            assert (await sender.send(bob, [b"not yet"]))[0].count == 1

            answer = await discovery.publish(world.bundle(world.rules(edges((alice, bob)))))
            assert answer.ack.version == 2
            await sender.send(bob, [b"now"])
            assert texts(await receiver.receive(1)) == [b"now"]

            wrong = mesh_pb2.MeshRules()  # no quota: nobody would be bounded
            answer = await discovery.publish(world.bundle(wrong))
            assert (answer.nack.version, answer.nack.reason) == (3, "compile_failed")
            forged = world.bundle(world.rules([]))
            forged.signature = bytes(64)
            assert (await discovery.publish(forged)).nack.reason == "signature_invalid"
            await sender.send(bob, [b"still"])
            assert texts(await receiver.receive(1)) == [b"still"]

            answer = await discovery.publish(world.bundle(world.rules(edges((bob, alice)))))
            assert answer.ack.version == 5
            assert [item.number for item in await sender.send(bob, [b"withdrawn"])] == [1, 4]
        async with channel(world.authority.operator("olga"), main) as operator:
            stub = policy_pb2_grpc.PolicyEnforcementStub(operator)
            shown = (await stub.GetInForce(policy_pb2.GetInForceRequest(), timeout=5)).doors[0]
        assert (shown.version, shown.last_known_good) == (5, False)
        relay.kill()
        await server.stop(0.5)
        # Without a controller, the last good policy is enforced.
        await asyncio.get_running_loop().run_in_executor(None, relay.start)
        async with PeerStream(alice, relay.ports["main"]) as sender:
            assert (await sender.send(bob, [b"no edge"]))[0].count == 1
