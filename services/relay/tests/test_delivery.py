"""What was accepted arrives: in order, at least once, until it is acknowledged or its time is over."""

import asyncio
import os
from pathlib import Path

import pytest
from kars.mesh.v1 import relay_pb2
from kars_relay_testkit import PeerStream, TestPeer
from kars_relay_testkit.house import (
    House,
    attached,
    make_house,
    reason,
    registered,
    resident_bytes,
    stored,
    texts,
)


async def test_mesh_05_stored_mail_comes_in_order_after_connect(house: House) -> None:
    alice, bob = await registered(house, "alice", "bob")
    async with house.stream(alice) as sender:
        for number in range(150):
            await sender.submit(bob, [b"%d" % number])
        assert not await sender.decide()
    async with house.stream(bob) as receiver:
        received = await receiver.receive(150)

        assert texts(received) == [b"%d" % number for number in range(150)]
        assert [item.seq for item in received] == sorted({item.seq for item in received})


async def test_mesh_05_what_is_not_acknowledged_comes_back_and_what_is_never_does(house: House) -> None:
    alice, carol = await registered(house, "alice", "carol")
    async with house.stream(alice) as sender:
        await sender.send(carol, [b"one", b"two", b"three", b"four"])
    async with house.stream(carol) as first:
        received = await first.receive(4)
        await first.ack(received[1].seq)  # in the middle of what was sent as one run
        async with house.stream(alice) as sender:
            await sender.send(carol, [b"five"])
        await first.receive(1)
    async with house.stream(carol) as second:
        again = await second.receive(3)

        assert second.welcome.acked_through == received[1].seq
        assert texts(again) == [b"three", b"four", b"five"]
        assert again[0].seq == received[2].seq
        await second.ack()
        assert await second.nothing()
    async with house.stream(carol) as third:
        assert await third.nothing()


async def test_live_delivery_is_kept_until_acknowledged(house: House) -> None:
    alice, dave = await registered(house, "alice", "dave")
    async with house.stream(alice) as sender:
        async with house.stream(dave) as receiver:
            await sender.send(dave, [b"handed over, never acknowledged"])
            await receiver.receive(1)
        async with house.stream(dave) as back:
            assert texts(await back.receive(1)) == [b"handed over, never acknowledged"]


async def test_mesh_05_the_time_to_live_is_swept_while_nobody_looks(house: House) -> None:
    alice, erin = await registered(house, "alice", "erin")
    async with house.stream(alice) as sender:
        await sender.send(erin, [b"short"], ttl_s=1)
        await sender.send(erin, [b"long"])
        async with asyncio.timeout(5):
            while await stored(house, erin) != 1:
                await asyncio.sleep(0.05)
    async with house.stream(erin) as receiver:
        assert texts(await receiver.receive(1)) == [b"long"]


async def test_mesh_d13_a_second_copy_of_an_id_is_dropped_even_after_it_was_acknowledged(
    house: House,
) -> None:
    alice, frank = await registered(house, "alice", "frank")
    async with house.stream(alice) as sender, house.stream(frank) as receiver:
        ids = await sender.submit(frank, [b"a", b"b"])
        await sender.decide()
        await sender.send(frank, [b"b", b"c"], ids=[ids[1], os.urandom(16)])
        received = await receiver.receive(3)
        assert texts(received) == [b"a", b"b", b"c"]
        await receiver.ack()
        await sender.send(frank, [b"a", b"a", b"d"], ids=[ids[0], ids[0], os.urandom(16)])

        assert texts(await receiver.receive(1)) == [b"d"]
        assert await receiver.nothing()


async def test_ids_are_known_for_each_sender_alone(house: House) -> None:
    alice, bob, grace = await registered(house, "alice", "bob", "grace")
    same = os.urandom(16)
    async with house.stream(grace) as receiver:
        for peer in (alice, bob):
            async with house.stream(peer) as sender:
                await sender.send(grace, [str(peer).encode()], ids=[same])

        assert texts(await receiver.receive(2)) == [str(alice).encode(), str(bob).encode()]


async def test_mesh_04_the_sender_is_whom_the_certificate_names(house: House) -> None:
    alice, bob, heidi = await registered(house, "alice", "bob", "heidi")
    async with house.stream(heidi) as receiver:
        for peer in (bob, alice):
            async with house.stream(peer) as sender:
                await sender.send(heidi, [b"who am I"])
        received = await receiver.receive(2)

        assert [item.sender for item in received] == [str(bob), str(alice)]


async def test_acknowledging_what_was_not_delivered_is_refused(house: House) -> None:
    alice, ivan = await registered(house, "alice", "ivan")
    async with house.stream(alice) as sender:
        await sender.send(ivan, [b"x"])
    async with house.stream(ivan) as receiver:
        await receiver.receive(1)
        await receiver.ack(2**40)
        assert reason(await receiver.ended())[0] == "ack_out_of_range"


async def test_the_window_bounds_what_is_under_way(house: House) -> None:
    alice, judy = await registered(house, "alice", "judy")
    window = relay_pb2.Window(max_envelopes=5, max_bytes=64 * 1024)
    async with house.stream(alice) as sender:
        await sender.send(judy, [b"x" * 100] * 12)
        await sender.send(judy, [os.urandom(200_000)])  # larger than the window: passes alone
        await sender.send(judy, [b"last"])
    async with house.stream(judy, window=window) as receiver:
        for expected in (5, 5, 2):
            received = await receiver.receive(expected)
            assert expected == 2 or await receiver.nothing(0.2)
            await receiver.ack(received[-1].seq)
        assert len((await receiver.receive(1))[0].payload) == 200_000
        assert await receiver.nothing(0.2)
        await receiver.ack()
        assert texts(await receiver.receive(1)) == [b"last"]


async def test_an_envelope_of_the_largest_size_passes(house: House) -> None:
    alice, kim = await registered(house, "alice", "kim")
    async with house.stream(alice) as sender, house.stream(kim) as receiver:
        largest = os.urandom(sender.welcome.max_payload_bytes)
        assert not await sender.send(kim, [largest])
        assert texts(await receiver.receive(1)) == [largest]


async def fill(sender: PeerStream, to: TestPeer, halves: int) -> None:
    """Send so many halves of a MiB."""
    chunk = os.urandom(512 * 1024)
    for _ in range(halves // 4):
        await sender.submit(to, [chunk] * 4)
    assert not await sender.decide(60)


async def test_a_slow_reader_with_64_mib_pending_costs_the_relay_no_such_memory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    for house in make_house(tmp_path_factory.mktemp("slow")):
        alice, slow = await registered(house, "alice", "slow")
        window = relay_pb2.Window(max_envelopes=4096, max_bytes=8 * 1024 * 1024)
        reader = await house.stream(slow, window=window).open()
        await reader.connect()  # and never reads again
        async with house.stream(alice) as sender:
            await fill(sender, slow, 32)
            before = resident_bytes(house.relay.pid)
            await fill(sender, slow, 128)  # 64 MiB more, while nobody reads
            grown = resident_bytes(house.relay.pid) - before
        assert grown < 16 * 1024 * 1024, f"grew by {grown >> 20} MiB"
        # It was ended for not reading, and everything waits for it.
        async with asyncio.timeout(10):
            while await attached(house, slow):
                await asyncio.sleep(0.05)
        await reader.close()
        async with house.stream(slow, window=window) as back:
            total = 0
            while total < 160:
                received = await back.receive(1, 20)
                total += 1
                await back.ack(received[-1].seq)


async def test_mesh_07_nothing_is_lost_by_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    for house in make_house(tmp_path_factory.mktemp("restart")):
        alice, bob = await registered(house, "alice", "bob")
        async with house.stream(alice) as sender:
            ids = await sender.submit(bob, [b"one", b"two", b"three"])
            await sender.decide()
        async with house.stream(bob) as receiver:
            received = await receiver.receive(1)
            await receiver.ack(received[0].seq)
        assert house.relay.stop() == 0
        house.relay.start()
        async with house.stream(alice) as sender, house.stream(bob) as receiver:
            await sender.send(bob, [b"one", b"four"], ids=[ids[0], os.urandom(16)])

            again = await receiver.receive(3)
            assert texts(again) == [b"two", b"three", b"four"]
            assert again[-1].seq > again[0].seq > received[0].seq


async def test_a_client_that_closes_its_side_still_gets_its_receipts(house: House) -> None:
    alice, leo = await registered(house, "alice", "leo")
    async with house.stream(alice) as sender:
        await sender.submit(leo, [b"last words"])
        await sender.call.done_writing()
        assert not await sender.decide()


async def test_the_relay_drains_and_tells_its_clients_to_come_back(tmp_path: Path) -> None:
    for house in make_house(tmp_path):
        alice, _ = await registered(house, "alice", "bob")
        stream = PeerStream(alice, house.port)
        async with stream:
            loop = asyncio.get_running_loop()
            stopping = loop.run_in_executor(None, house.relay.stop)
            assert reason(await stream.ended(10))[0] == "server_stopping"
            assert await stopping == 0
