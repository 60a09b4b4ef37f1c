"""Agents of the sdk over the real relay: another process, mTLS, its own disk. The controller is played."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from kars.mesh.v1 import identity_pb2
from kars_common.spiffe import SpiffeId
from kars_relay_testkit.client import channel
from kars_relay_testkit.process import RelayProcess
from kars_relay_testkit.world import MeshWorld, everybody
from kars_sdk.mesh import primitives
from kars_sdk.mesh.agent import Letter, MeshAgent
from kars_sdk.mesh.direct import Direct
from kars_sdk.mesh.errors import KnockRefusedError
from kars_sdk.mesh.identity import base64url
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.statements import TrustKey, TrustKeys
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.trust import Edge, TrustPolicy

WAIT = 30
KEY = bytes(range(32))
ANYBODY = "spiffe://kars.local/ns/*/sandbox/*"
FRIENDLY = TrustPolicy(edges=(Edge(source=ANYBODY, target=ANYBODY, score=600),))
_Response = TypeVar("_Response", bound=Message)


@dataclass
class Mesh:
    """One organisation with a running relay."""

    world: MeshWorld
    relay: RelayProcess
    folder: Path

    def name(self, sandbox: str) -> PeerName:
        return peer_name(str(SpiffeId.sandbox(self.world.trust_domain, self.world.namespace, sandbox)))

    def channel(self, sandbox: str) -> grpc.aio.Channel:
        return channel(self.world.authority.sandbox(self.world.namespace, sandbox), self.relay.ports["main"])

    def trust(self) -> TrustKeys:
        public = self.world.statement_key.public_key().public_bytes_raw()
        return TrustKeys([TrustKey(public_key=public, trust_domain=self.world.trust_domain)])

    @contextlib.asynccontextmanager
    async def agent(self, sandbox: str, policy: TrustPolicy = FRIENDLY) -> AsyncIterator[MeshAgent]:
        async def current() -> TrustPolicy:
            return policy

        home = self.folder / sandbox
        store = Store(home / "state", KEY)
        registry = self.channel(sandbox)
        direct = Direct(lambda: self.channel(sandbox), registry=registry)
        try:
            async with MeshAgent(
                name=self.name(sandbox), store=store, transport=direct, policy=current, trust=self.trust,
                registry=Controlled(self, direct, self.name(sandbox)), incoming=home / "incoming",
                min_backoff_s=0.1,
            ) as agent:  # fmt: skip
                await agent.client.attached(WAIT)
                yield agent
        finally:
            await registry.close()
            store.close()


class Controlled:
    """The relay's registry, and statements as the controller gives them."""

    def __init__(self, mesh: Mesh, direct: Direct, peer: PeerName) -> None:
        self.mesh, self.direct, self.peer = mesh, direct, peer

    async def call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        return await self.direct.call(method, request, response)

    async def issue_statement(
        self, request: identity_pb2.IssueStatementRequest
    ) -> identity_pb2.IssueStatementResponse:
        assert primitives.verify(
            request.identity_key, request.possession_proof, primitives.POSSESSION_LABEL, self.peer.encode()
        )
        world = self.mesh.world
        world.serial += 1
        template = world.statement(SpiffeId.parse(self.peer), world.statement_key, serial=world.serial)
        fields = json.loads(template.statement)
        fields["identityKey"] = base64url(request.identity_key)
        return identity_pb2.IssueStatementResponse(statement=world.sign_statement(fields))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    world = MeshWorld()
    folder = tmp_path / "relay"
    folder.mkdir()
    world.write_relay(folder, world.rules(everybody(world)))
    with RelayProcess(directory=folder).start() as relay:
        yield Mesh(world, relay, tmp_path)


async def take(agent: MeshAgent, kind: str = "text") -> Letter:
    found = await agent.letters(lambda letter: letter.kind == kind, timeout_s=WAIT)
    assert found, f"no {kind} came"
    await agent.mark_read(found[:1])
    return found[0]


async def test_agents_talk_over_a_relay_that_holds_only_ciphertext(mesh: Mesh) -> None:
    bob = mesh.name("bob")
    async with mesh.agent("bob"):
        pass
    async with mesh.agent("alice") as alice:
        sent = await alice.send_text(bob, "canary-text-" + "x" * 1000)
        with pytest.raises(TimeoutError):
            await sent.delivered(0.5)  # bob is down
        state = mesh.relay.directory / "state"
        stored = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
        assert len(stored) > 1000
        assert b"canary" not in stored
        async with mesh.agent("bob") as receiver:
            assert (await take(receiver)).text.startswith("canary-text-")
            await sent.delivered(WAIT)
            await receiver.send_text(alice.name, "got it")
            assert (await take(alice)).text == "got it"


async def test_nothing_is_lost_or_doubled_when_the_relay_is_killed_again_and_again(mesh: Mesh) -> None:
    bob = mesh.name("bob")
    async with mesh.agent("alice") as alice, mesh.agent("bob") as receiver:
        received = []
        for turn in range(4):
            for number in range(10):
                await alice.send_text(bob, f"{turn}.{number}")
            received += [(await take(receiver)).text for _ in range(5)]
            await asyncio.to_thread(mesh.relay.kill)
            await alice.send_text(bob, f"{turn}.down")
            await asyncio.to_thread(mesh.relay.start)
        while len(received) < 44:
            received.append((await take(receiver)).text)
        async with asyncio.timeout(WAIT):
            while len(alice.client.outbox):
                await asyncio.sleep(0.02)
        assert await receiver.letters() == []
    assert received == [f"{turn}.{each}" for turn in range(4) for each in [*range(10), "down"]]


async def test_both_agents_restart_at_every_step(mesh: Mesh) -> None:
    for turn in range(3):
        async with mesh.agent("bob") as bob:
            if turn:
                assert (await take(bob)).text == f"question {turn - 1}"
            bobs_name = bob.name
        async with mesh.agent("alice") as alice:
            sent = await alice.send_text(bobs_name, f"question {turn}")
            with contextlib.suppress(TimeoutError):
                await sent.delivered(0.3)


async def test_a_file_of_20_mib_arrives_whole(mesh: Mesh, tmp_path: Path) -> None:
    content = hashlib.shake_128(b"file").digest(20 * 1024 * 1024)
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    async with mesh.agent("alice") as alice, mesh.agent("bob") as bob:
        transfer = await alice.send_file(bob.name, path)
        assert await alice.transfers.finished(transfer, 60) == "received"
        told = json.loads((await take(bob, "file")).text)
    assert Path(told["path"]).read_bytes() == content


async def test_a_stranger_is_refused_by_the_receiver_and_by_the_relay(mesh: Mesh) -> None:
    async with mesh.agent("bob", TrustPolicy()) as bob, mesh.agent("mallory") as mallory:
        with pytest.raises(KnockRefusedError) as refused:
            await (await mallory.send_text(bob.name, "let me in")).delivered(WAIT)
        assert refused.value.reason == "edge_missing"
        outside = peer_name("spiffe://elsewhere.test/ns/team/sandbox/bob")
        await mallory.send_text(outside, "hello")
        async with asyncio.timeout(WAIT):
            while not any(event.peer == outside for event in mallory.client.events):
                await asyncio.sleep(0.01)
        reasons = {event.reason for event in mallory.client.events if event.peer == outside}
        assert reasons == {"peer_not_found"}  # whom policy does not relate to us, does not exist for us
        assert await bob.letters() == []


async def test_groups_roster_and_presence_work_on_the_real_registry(mesh: Mesh) -> None:
    async with mesh.agent("alice") as alice, mesh.agent("bob") as bob, mesh.agent("carol") as carol:
        assert await alice.resolve("carol") == carol.name
        assert {each.peer for each in await alice.roster()} == {bob.name, carol.name}
        assert await alice.client.directory.presence(bob.name) == "attached"
        group = await alice.create_group("writers", [bob.name, carol.name])
        await alice.send_group(group.group_id, "hello all")
        assert [(await take(each, "group")).text for each in (bob, carol)] == ["hello all"] * 2
