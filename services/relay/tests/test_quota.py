"""What is refused, and how it is said: edges, rates, full mailboxes, sizes."""

import asyncio
import os

from kars.mesh.v1 import relay_pb2
from kars_relay.policy import Quota
from kars_relay.quota import SenderQuota
from kars_relay_testkit.house import House, registered, stored, texts

R = relay_pb2.RefusalReason


def shape(refusals: list[relay_pb2.Refusal]) -> list[tuple[int, int, str]]:
    return [(item.number, item.count, R.Name(item.reason)[15:]) for item in refusals]


async def test_an_edge_that_policy_forbids_is_not_bridged_and_tells_nothing_of_the_recipient(
    house: House,
) -> None:
    (alice,) = await registered(house, "alice")
    exists = house.world.peer("exists", namespace="closed")
    async with house.stream(exists) as inside:
        async with house.stream(alice) as sender:
            await sender.send(exists, [b"let me in"])
            refusals = await sender.send("spiffe://kars.local/ns/closed/sandbox/nobody", [b"let me in"])
        assert shape(refusals) == [(1, 1, "EDGE_FORBIDDEN"), (2, 1, "EDGE_FORBIDDEN")]
        assert await inside.nothing()
        assert shape(await inside.send(alice, [b"and back"])) == [(1, 1, "EDGE_FORBIDDEN")]


async def test_mail_for_a_peer_that_never_came_is_not_kept(house: House) -> None:
    (alice,) = await registered(house, "alice")
    ghost = "spiffe://kars.local/ns/team/sandbox/ghost"
    async with house.stream(alice) as sender:
        assert shape(await sender.send(ghost, [b"hello?"] * 3)) == [(1, 3, "RECIPIENT_UNKNOWN")]


async def test_odd_recipients_are_refused(house: House) -> None:
    (alice,) = await registered(house, "alice")
    async with house.stream(alice) as sender:
        for odd in ("x", "spiffe://kars.local/ns/team/sandbox/*", "spiffe://kars.local", alice):
            await sender.submit(odd, [b"x"])
        assert [name for *_, name in shape(await sender.decide())] == ["EDGE_FORBIDDEN"] * 4


async def test_mesh_06_and_b9_a_mailbox_is_bounded_and_one_sender_cannot_fill_it(house: House) -> None:
    alice, bob, _ = await registered(house, "alice", "bob", "small")
    small = house.world.peer("small")
    async with house.stream(alice) as sender:
        refusals = await sender.send(small, [b"x"] * 30)
        assert shape(refusals) == [(21, 10, "SENDER_SHARE")]  # half of 40
        assert await stored(house, small) == 20
        assert shape(await sender.send(small, [b"x"]))[-1] == (31, 1, "SENDER_SHARE")
    async with house.stream(bob) as sender:
        assert not await sender.send(small, [b"y"] * 20)
        assert shape(await sender.send(small, [b"z"])) == [(21, 1, "RECIPIENT_FULL")]
    (carol,) = await registered(house, "carol")
    async with house.stream(carol) as sender:
        assert shape(await sender.send(small, [b"full"])) == [(1, 1, "RECIPIENT_FULL")]
    async with house.stream(small) as receiver:
        received = await receiver.receive(40)
        assert texts(received) == [b"x"] * 20 + [b"y"] * 20
        await receiver.ack()
        async with house.stream(carol) as sender:
            assert not await sender.send(small, [b"room again"])
            assert texts(await receiver.receive(1)) == [b"room again"]


async def test_mesh_06_bytes_are_bounded_too(house: House) -> None:
    alice, _ = await registered(house, "alice", "small")
    small = house.world.peer("small")
    async with house.stream(alice) as sender:
        refusals = await sender.send(small, [os.urandom(90_000)] * 3)
        assert shape(refusals) == [(3, 1, "SENDER_SHARE")]
    async with house.stream(small) as receiver:
        await receiver.receive(2)
        await receiver.ack()


async def test_mesh_06_a_senders_rate_is_refused_with_when_to_come_back(house: House) -> None:
    (alice,) = await registered(house, "alice")
    small = house.world.peer("small")
    async with house.stream(alice) as receiver, house.stream(small) as sender:
        refusals = await sender.send(alice, [b"%d" % number for number in range(70)])
        (number, count, name) = shape(refusals)[0]
        assert name == "SENDER_RATE"
        assert number + count - 1 == 70
        assert 0 < refusals[0].retry_after_ms < 2000
        received = await receiver.receive(number - 1)
        assert texts(received) == [b"%d" % n for n in range(number - 1)]
        await asyncio.sleep(refusals[0].retry_after_ms / 1000)
        assert len(await sender.send(alice, [b"later"])) == 1


async def test_one_payload_that_is_too_large_is_refused_and_its_neighbours_pass(house: House) -> None:
    alice, mona = await registered(house, "alice", "mona")
    async with house.stream(alice) as sender, house.stream(mona) as receiver:
        too_large = os.urandom(sender.welcome.max_payload_bytes + 64)
        refusals = await sender.send(mona, [b"before", too_large, b"after"])
        assert shape(refusals) == [(2, 1, "PAYLOAD_TOO_LARGE")]
        assert texts(await receiver.receive(2)) == [b"before", b"after"]


def test_a_bucket_gives_what_it_holds_and_refills_with_time() -> None:
    now = [0.0]
    quota = SenderQuota(
        Quota(send_rate=10, send_burst=5, send_bytes_rate=100, send_bytes_burst=1000), lambda: now[0]
    )
    assert quota.take([1, 2, 3]) == 3
    assert quota.take([1, 2, 3]) == 2
    assert quota.take([1]) == 0
    assert quota.retry_after_ms(1) == 100
    now[0] += 0.2
    assert quota.take([1, 2, 3]) == 2
    now[0] += 10
    assert quota.take([900, 1100]) == 1
    assert quota.retry_after_ms(200) > 900
