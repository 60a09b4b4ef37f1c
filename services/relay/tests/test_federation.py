"""Two organisations: mail crosses only where both sides' policy says so, and nobody speaks for a third."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from kars.mesh.v1 import federation_pb2, federation_pb2_grpc, policy_pb2, relay_pb2
from kars_common.rpc.credentials import channel_credentials
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid
from kars_relay_testkit import MeshWorld, PeerStream, RelayProcess, TestPeer, edges
from kars_relay_testkit.house import House, reason, texts

from .test_registry import Desk, refusal


@dataclass
class Two:
    """East and west, federated; `west` may be told to forbid everything from east."""

    east: House
    west: House


def rules(world: MeshWorld, other: MeshWorld, port: int, *, mutual: bool = True) -> policy_pb2.MeshRules:
    ours, theirs = (f"spiffe://{domain.trust_domain}/ns/team/sandbox/*" for domain in (world, other))
    allowed = edges((ours, ours), (ours, theirs), *([(theirs, ours)] if mutual else []))
    domain = policy_pb2.FederatedDomain(
        trust_domain=other.trust_domain,
        endpoint=f"127.0.0.1:{port}",
        trust_bundle_pem=other.authority.trust_bundle_pem.decode(),
    )
    made = world.rules(allowed, federated_domains=[domain])
    made.statement_keys.append(other.statement_key_message)
    return made


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    import socket

    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    worlds = [MeshWorld(trust_domain="east.example"), MeshWorld(trust_domain="west.example")]
    houses = []
    for number, world in enumerate(worlds):
        directory = tmp_path_factory.mktemp(world.trust_domain)
        world.write_relay(directory, rules(world, worlds[1 - number], ports[1 - number]))
        relay = RelayProcess(
            directory=directory,
            settings={
                "TRUST_DOMAIN": world.trust_domain,
                "FEDERATION_ADDRESS": f"127.0.0.1:{ports[number]}",
            },
        )
        houses.append(House(world, relay.start()))
    yield Two(*houses)
    for house in houses:
        house.relay.kill()


async def test_mail_crosses_with_the_name_of_its_sender_and_in_order(two: Two) -> None:
    alice, bob = two.east.world.peer("alice"), two.west.world.peer("bob")
    async with two.west.stream(bob) as receiver, two.east.stream(alice) as sender:
        for number in range(20):
            await sender.submit(bob, [b"%d" % number])
        assert not await sender.decide()
        received = await receiver.receive(20, 15)
        assert texts(received) == [b"%d" % number for number in range(20)]
        assert {item.sender for item in received} == {str(alice)}
        await sender.submit(bob, [b"and"])
    async with two.east.stream(alice) as back, two.west.stream(bob) as answering:
        await answering.send(alice, [b"back"])
        assert texts(await back.receive(1, 15)) == [b"back"]


async def test_mail_waits_while_the_other_relay_is_down(two: Two) -> None:
    alice, carol = two.east.world.peer("alice"), two.west.world.peer("carol")
    async with two.west.stream(carol):
        pass
    two.west.relay.kill()
    async with two.east.stream(alice) as sender:
        assert not await sender.send(carol, [b"patience"])
    two.west.relay.start()
    async with two.west.stream(carol) as receiver:
        assert texts(await receiver.receive(1, 20)) == [b"patience"]


async def test_prekeys_and_lookups_cross_under_both_policies(two: Two) -> None:
    alice, dora = two.east.world.peer("alice"), two.west.world.peer("dora")
    async with Desk(two.west, dora) as there, Desk(two.east, alice) as here:
        await there.register("chat")
        await there.publish(count=2)
        found = await here.lookup(dora)
        assert found.registration.identity == dora.statement
        assert (found.may_write, found.may_receive, found.edge_score) == (True, True, 500)
        assert (await here.take(dora)).one_time_prekey.key_id == 1
        assert not (await here.take(dora)).HasField("one_time_prekey")
        assert await refusal(here.lookup("spiffe://west.example/ns/closed/sandbox/x")) == "peer_not_found"
        assert await refusal(here.lookup("spiffe://north.example/ns/team/sandbox/x")) == "peer_not_found"


def relay_channel(house: House, svid: Svid) -> grpc.aio.Channel:
    """Return a channel to a federation listener with any certificate."""
    name = f"relay.svc.{house.world.trust_domain}"
    svid = replace(svid, trust_bundle_pem=house.world.authority.trust_bundle_pem)
    return grpc.aio.secure_channel(
        f"127.0.0.1:{house.relay.ports['federation']}",
        channel_credentials(svid),
        options=[("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)],
    )


def forward(sender: object, to: object) -> federation_pb2.ForwardRequest:
    envelope = relay_pb2.Envelope(id=os.urandom(16), payload=b"x")
    submission = relay_pb2.Submission(to=str(to), envelopes=[envelope])
    item = federation_pb2.ForwardedSubmission(sender=str(sender), submission=submission)
    return federation_pb2.ForwardRequest(submissions=[item])


async def forwarded(house: House, svid: Svid, request: federation_pb2.ForwardRequest) -> list[str] | str:
    async with relay_channel(house, svid) as opened:
        stub = federation_pb2_grpc.FederationStub(opened)
        try:
            answer = await stub.Forward(request, timeout=5)
        except grpc.aio.AioRpcError as failure:
            return reason(failure)[0]
        return [relay_pb2.RefusalReason.Name(item.reason)[15:] for item in answer.refusals]


async def test_the_other_side_refuses_what_its_own_policy_does_not_allow(two: Two) -> None:
    bob = two.west.world.peer("bob")
    async with two.west.stream(bob):
        pass
    east_relay = two.east.world.authority.service("relay")
    alice = "spiffe://east.example/ns/team/sandbox/alice"
    outsider = "spiffe://east.example/ns/other/sandbox/x"
    assert await forwarded(two.west, east_relay, forward(alice, bob)) == []
    assert await forwarded(two.west, east_relay, forward(outsider, bob)) == ["EDGE_FORBIDDEN"]
    hidden = "spiffe://west.example/ns/closed/sandbox/x"
    assert await forwarded(two.west, east_relay, forward(alice, hidden)) == ["EDGE_FORBIDDEN"]


async def test_a_relay_speaks_for_its_own_peers_only_and_passes_nothing_on(two: Two) -> None:
    bob = "spiffe://west.example/ns/team/sandbox/bob"
    east_relay = two.east.world.authority.service("relay")
    for name in (bob, "spiffe://north.example/ns/team/sandbox/x", "spiffe://east.example/svc/controller"):
        assert await forwarded(two.west, east_relay, forward(name, bob)) == "sender_not_of_domain"
    alice = "spiffe://east.example/ns/team/sandbox/alice"
    north = "spiffe://north.example/ns/team/sandbox/x"
    assert await forwarded(two.west, east_relay, forward(alice, north)) == ["NOT_FEDERATED"]
    assert await forwarded(two.west, east_relay, forward(alice, alice)) == ["NOT_FEDERATED"]


async def test_only_the_relay_of_a_federated_domain_may_call(two: Two) -> None:
    request = forward(
        "spiffe://east.example/ns/team/sandbox/alice", "spiffe://west.example/ns/team/sandbox/bob"
    )
    authority = two.east.world.authority
    for svid in (
        authority.sandbox("team", "alice"),
        authority.operator("eve"),
        authority.service("controller"),
    ):
        assert await forwarded(two.west, svid, request) == "domain_not_federated"


async def test_an_authority_is_believed_about_its_own_trust_domain_only(two: Two) -> None:
    # East's authority issues a certificate that names west's own relay, and one that names a third domain's.
    for domain in ("west.example", "north.example"):
        name = SpiffeId.service(domain, "relay")
        forged = two.east.world.authority.issue(name)
        request = forward(f"spiffe://{domain}/ns/team/sandbox/x", "spiffe://west.example/ns/team/sandbox/bob")
        assert await forwarded(two.west, forged, request) == "domain_not_federated"


async def test_a_federated_roots_peer_cannot_attach_to_the_main_listener(two: Two) -> None:
    stream = PeerStream(two.east.world.peer("alice"), two.west.port)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stream.open()
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    await stream.close()


async def test_an_edge_of_one_side_alone_carries_nothing(tmp_path: Path) -> None:
    east, west = MeshWorld(trust_domain="east.example"), MeshWorld(trust_domain="west.example")
    west.write_relay(tmp_path, rules(west, east, 1, mutual=False))
    settings = {"TRUST_DOMAIN": "west.example", "FEDERATION_ADDRESS": "127.0.0.1:0"}
    with RelayProcess(directory=tmp_path, settings=settings) as relay:
        house = House(west, relay.start())
        bob: TestPeer = west.peer("bob")
        async with house.stream(bob) as stream:
            alice = "spiffe://east.example/ns/team/sandbox/alice"
            svid = east.authority.service("relay")
            assert await forwarded(house, svid, forward(alice, bob)) == ["EDGE_FORBIDDEN"]
            assert await stream.nothing()
