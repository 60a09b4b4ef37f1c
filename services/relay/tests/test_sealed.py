"""Sealed senders: mail without a name, for those who hold the recipient's token, and for no others."""

import hashlib
import os
from pathlib import Path

import grpc
import pytest
from kars.mesh.v1 import registry_pb2, registry_pb2_grpc, relay_pb2, relay_pb2_grpc
from kars_relay_testkit import TestPeer
from kars_relay_testkit.house import House, make_house, reason, registered


async def submit(house: House, to: object, token: bytes, payload: bytes) -> relay_pb2.SubmitSealedResponse:
    """Hand an envelope in over the listener that asks for no certificate."""
    options = [("grpc.ssl_target_name_override", "relay.svc.kars.local")]
    credentials = grpc.ssl_channel_credentials(house.world.authority.trust_bundle_pem)
    address = f"127.0.0.1:{house.relay.ports['sealed']}"
    async with grpc.aio.secure_channel(address, credentials, options=options) as bare:
        envelope = relay_pb2.Envelope(id=os.urandom(16), payload=payload)
        request = relay_pb2.SubmitSealedRequest(
            submission=relay_pb2.Submission(to=str(to), envelopes=[envelope]), delivery_token=token
        )
        answer: relay_pb2.SubmitSealedResponse = await relay_pb2_grpc.RelayStub(bare).SubmitSealed(
            request, timeout=5
        )
        return answer


async def open_to_sealed(house: House, name: str) -> tuple[TestPeer, bytes]:
    (peer,) = await registered(house, name)
    token = os.urandom(32)
    async with house.stream(peer) as stream:
        access = relay_pb2.SealedAccess(token_sha256=hashlib.sha256(token).digest())
        await stream.call.write(relay_pb2.AttachRequest(sealed_access=access))
        await stream.submit(peer, [b"a round trip, so that the token is set"])
        await stream.decide()
    return peer, token


async def refusal(house: House, to: object, token: bytes) -> tuple[str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await submit(house, to, token, b"x")
    return reason(failure.value)[0], failure.value.details()


async def test_a_sealed_envelope_arrives_without_a_sender(house: House) -> None:
    bob, token = await open_to_sealed(house, "sealed-bob")
    assert not (await submit(house, bob, token, b"guess who")).refusals
    async with house.stream(bob) as receiver:
        (received,) = await receiver.receive(1)
        assert (received.sender, received.payload) == ("", b"guess who")


async def test_a_wrong_token_and_a_recipient_that_does_not_exist_are_one_answer(house: House) -> None:
    bob, _ = await open_to_sealed(house, "sealed-bob")
    wrong = await refusal(house, bob, os.urandom(32))
    absent = await refusal(house, "spiffe://kars.local/ns/team/sandbox/absent", os.urandom(32))
    (closed,) = await registered(house, "never-opened")
    assert wrong == absent == await refusal(house, closed, b"")
    assert wrong[0] == "delivery_token_invalid"


async def test_a_token_that_was_replaced_opens_nothing(house: House) -> None:
    bob, old = await open_to_sealed(house, "sealed-rotates")
    _, new = await open_to_sealed(house, "sealed-rotates")
    assert (await refusal(house, bob, old))[0] == "delivery_token_invalid"
    assert not (await submit(house, bob, new, b"y")).refusals


async def test_policy_decides_who_may_accept_sealed_senders(house: House) -> None:
    outside = house.world.peer("outside", namespace="closed")
    async with house.stream(outside):
        pass
    assert (await refusal(house, outside, os.urandom(32)))[0] == "sealed_not_allowed"


async def test_the_sealed_listener_serves_nothing_else(house: House) -> None:
    options = [("grpc.ssl_target_name_override", "relay.svc.kars.local")]
    credentials = grpc.ssl_channel_credentials(house.world.authority.trust_bundle_pem)
    address = f"127.0.0.1:{house.relay.ports['sealed']}"
    async with grpc.aio.secure_channel(address, credentials, options=options) as bare:
        registry = registry_pb2_grpc.RegistryStub(bare)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await registry.GetTreeHead(registry_pb2.GetTreeHeadRequest(), timeout=5)
        assert reason(failure.value)[0] == "method_not_authorized"


async def test_nothing_that_the_relay_keeps_names_a_sealed_sender_or_holds_a_plaintext_record(
    tmp_path: Path,
) -> None:
    for house in make_house(tmp_path):
        bob, token = await open_to_sealed(house, "bob")
        secret_sender = house.world.peer("whistle-blower")
        canary = os.urandom(24).hex().encode()
        async with house.stream(bob) as stream:
            await stream.ack()
            await submit(house, bob, token, canary)
            await stream.receive(1)
        await refusal(house, bob, b"wrong")
        house.relay.stop()
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        names = [
            path.name for path, data in kept.items() if str(secret_sender.name.segments[-1]).encode() in data
        ]
        assert not names
        assert token not in b"".join(kept.values())
        # The envelope itself is in the mailbox's file and nowhere else: no log, no audit record, no index.
        holders = {path.name for path, data in kept.items() if canary in data}
        assert all(name.endswith(".seg") for name in holders)
