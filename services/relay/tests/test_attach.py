"""Who gets in: every way to attach as somebody else is refused by name."""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.mesh.v1 import relay_pb2
from kars_relay.identity import connect_message
from kars_relay_testkit import MeshWorld, PeerStream, RelayProcess, TestPeer
from kars_relay_testkit.house import House, reason


async def refused(house: House, peer: TestPeer, connect: relay_pb2.Connect | None) -> tuple[str, str]:
    stream = await house.stream(peer).open()
    try:
        if connect is not None:
            await stream.call.write(relay_pb2.AttachRequest(connect=connect))
        return reason(await stream.ended())
    finally:
        await stream.close()


async def honest(house: House, peer: TestPeer) -> tuple[PeerStream, relay_pb2.Connect]:
    stream = await house.stream(peer).open()
    return stream, stream.make_connect()


async def answer(stream: PeerStream, connect: relay_pb2.Connect) -> tuple[str, str]:
    try:
        await stream.call.write(relay_pb2.AttachRequest(connect=connect))
        return reason(await stream.ended())
    finally:
        await stream.close()


async def test_mesh_01_a_silent_client_is_refused_in_time(house: House) -> None:
    assert await refused(house, house.world.peer("silent"), None) == ("connect_timeout", "4001")


@pytest.mark.parametrize(
    "first",
    [
        relay_pb2.AttachRequest(),
        relay_pb2.AttachRequest(ack_through=1),
        relay_pb2.AttachRequest(
            connect=relay_pb2.Connect(peer="spiffe://kars.local/ns/team/sandbox/early"), ack_through=1
        ),
    ],
)
async def test_mesh_01_a_first_frame_that_is_not_connect_is_refused(
    house: House, first: relay_pb2.AttachRequest
) -> None:
    stream = await house.stream(house.world.peer("early")).open()
    await stream.call.write(first)

    assert reason(await stream.ended()) == ("connect_expected", "4001")
    await stream.close()


async def test_mesh_01_a_connect_without_a_name_is_refused(house: House) -> None:
    assert await refused(house, house.world.peer("nameless"), relay_pb2.Connect()) == ("peer_missing", "4002")


async def test_mesh_02_another_peers_name_is_refused_whatever_it_proves(house: House) -> None:
    alice, mallory = house.world.peer("alice"), house.world.peer("mallory")
    stream, connect = await honest(house, mallory)
    connect.peer = str(alice)
    connect.identity.CopyFrom(alice.statement)
    connect.proof = alice.identity.sign(connect_message(stream.hello.nonce, stream.hello.relay, str(alice)))

    assert await answer(stream, connect) == ("peer_mismatch", "4003")


async def test_mesh_02_another_peers_statement_is_refused(house: House) -> None:
    alice, mallory = house.world.peer("alice"), house.world.peer("mallory")
    stream, connect = await honest(house, mallory)
    connect.identity.CopyFrom(alice.statement)

    assert await answer(stream, connect) == ("peer_mismatch", "4003")


async def test_mesh_02_a_proof_by_another_key_is_refused(house: House) -> None:
    peer = house.world.peer("alice")
    stream, connect = await honest(house, peer)
    message = connect_message(stream.hello.nonce, stream.hello.relay, str(peer))
    connect.proof = Ed25519PrivateKey.generate().sign(message)

    assert await answer(stream, connect) == ("connect_proof_invalid", "4005")


async def test_mesh_d7_a_proof_captured_from_one_connection_opens_no_other(house: House) -> None:
    peer = house.world.peer("alice")
    async with house.stream(peer) as first:
        captured = first.make_connect()
        second = await house.stream(peer).open()

        assert await answer(second, captured) == ("connect_proof_invalid", "4005")


async def test_a_proof_for_another_relay_is_refused(house: House) -> None:
    peer = house.world.peer("alice")
    stream, connect = await honest(house, peer)
    elsewhere = connect_message(stream.hello.nonce, "spiffe://other.example/svc/relay", str(peer))
    connect.proof = peer.identity.sign(elsewhere)

    assert await answer(stream, connect) == ("connect_proof_invalid", "4005")


async def test_a_statement_that_ended_is_refused(house: House) -> None:
    peer = house.world.peer("late")
    peer.statement = house.world.statement(peer.name, peer.identity, lifetime=timedelta(seconds=-1))
    stream, connect = await honest(house, peer)

    assert await answer(stream, connect) == ("identity_statement_invalid", "4005")


async def test_a_statement_by_a_key_that_policy_does_not_name_is_refused(house: House) -> None:
    stranger = MeshWorld()
    peer = house.world.peer("alice")
    peer.statement = stranger.statement(peer.name, peer.identity)
    stream, connect = await honest(house, peer)

    assert await answer(stream, connect) == ("identity_statement_invalid", "4005")


async def test_an_older_statement_is_refused_once_a_newer_was_seen(house: House) -> None:
    old = house.world.peer("rotating")
    new = house.world.peer("rotating")
    async with house.stream(new):
        pass
    stream, connect = await honest(house, old)

    assert await answer(stream, connect) == ("identity_superseded", "4005")


async def test_a_connection_ends_with_the_statement_that_opened_it(house: House) -> None:
    peer = house.world.peer("short")
    peer.statement = house.world.statement(peer.name, peer.identity, lifetime=timedelta(seconds=2))
    async with house.stream(peer) as stream:
        assert reason(await stream.ended())[0] == "identity_statement_expired"


async def test_mesh_03_a_second_connection_ends_the_first_and_not_itself(house: House) -> None:
    peer, friend = house.world.peer("twice"), house.world.peer("friend")
    async with house.stream(peer) as first, house.stream(friend) as sender, house.stream(peer) as second:
        assert reason(await first.ended()) == ("peer_replaced", "4006")
        assert not await sender.send(peer, [b"for the second"])
        assert (await second.receive(1))[0].payload == b"for the second"


async def test_connect_may_not_be_repeated(house: House) -> None:
    peer = house.world.peer("again")
    async with house.stream(peer) as stream:
        await stream.call.write(relay_pb2.AttachRequest(connect=stream.make_connect()))

        assert reason(await stream.ended())[0] == "connect_repeated"


async def test_without_a_client_certificate_nobody_is_heard(house: House) -> None:
    roots = house.world.authority.trust_bundle_pem
    options = [("grpc.ssl_target_name_override", "relay.svc.kars.local")]
    credentials = grpc.ssl_channel_credentials(roots)
    async with grpc.aio.secure_channel(f"127.0.0.1:{house.port}", credentials, options=options) as bare:
        call: Any = bare.stream_stream("/kars.mesh.v1.Relay/Attach")(timeout=2)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
    assert failure.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_certificate_of_another_trust_domain_is_not_heard(house: House) -> None:
    foreign = MeshWorld()  # the same name of a trust domain, under another root
    stream = PeerStream(foreign.peer("alice"), house.port)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stream.open()
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    await stream.close()


async def test_a_service_or_an_operator_may_not_attach(house: House) -> None:
    peer = house.world.peer("alice")
    peer.svid = house.world.authority.operator("eve")
    stream = house.stream(peer)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stream.open()
    assert reason(failure.value)[0] == "caller_not_authorized"
    await stream.close()


async def test_without_policy_nobody_attaches(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("lawless")
    world = MeshWorld()
    world.write_relay(directory, None)
    with RelayProcess(directory=directory) as relay:
        relay.start()
        stream = PeerStream(world.peer("alice"), relay.ports["main"])
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stream.open()
        assert reason(failure.value)[0] == "no_policy_in_force"
        await stream.close()
