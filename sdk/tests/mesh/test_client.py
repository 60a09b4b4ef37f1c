"""The client end to end: two agents, a relay in memory, everything else real."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from kars.mesh.v1 import relay_pb2
from kars_sdk.mesh import frames
from kars_sdk.mesh.client import MeshClient
from kars_sdk.mesh.directory import Directory
from kars_sdk.mesh.errors import KnockRefusedError, MeshError, PayloadError, TransportError
from kars_sdk.mesh.inbox import Inbox
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.outbox import Outbox
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.testing import OPEN, Authority, name
from kars_sdk.mesh.testing_mesh import MemoryMesh
from kars_sdk.mesh.trust import TrustPolicy
from kars_sdk.mesh.upkeep import Membership, Profile

ALICE, BOB = name("alice"), name("bob")
KEY = bytes(range(32))
WAIT = 10


@pytest.fixture
def mesh(authority: Authority) -> MemoryMesh:
    return MemoryMesh(authority)


@contextlib.asynccontextmanager
async def running(
    mesh: MemoryMesh,
    peer: PeerName,
    folder: Path,
    *,
    policy: TrustPolicy = OPEN,
    profile: Profile = Profile(),  # noqa: B008
) -> AsyncIterator[MeshClient]:
    store = Store(folder / peer.rpartition("/")[2], KEY)
    endpoint = mesh.endpoint(peer)

    async def current() -> TrustPolicy:
        return policy

    try:
        membership = Membership(
            name=peer, store=store, directory=Directory(endpoint), trust=lambda: mesh.authority.trust,
            policy=current, profile=profile,
        )  # fmt: skip
        async with MeshClient(membership, endpoint, min_backoff_s=0.02) as client:
            await client.attached(WAIT)
            yield client
    finally:
        store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.01)


async def take(client: MeshClient) -> str:
    message = await client.receive(timeout_s=WAIT)
    assert message is not None
    return message.text


async def test_messages_arrive_in_order_and_are_acknowledged(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        sent = [await alice.send(BOB, "text", b"%d" % number) for number in range(100)]
        assert [await take(bob) for _ in range(100)] == [str(number) for number in range(100)]
        for each in sent:
            await each.delivered(WAIT)
        assert len(alice.outbox) == 0
        await bob.send(ALICE, "text", b"back")
        assert await take(alice) == "back"


async def test_the_relay_sees_neither_text_nor_kind(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        sent = await alice.send(BOB, "canary-kind", b"canary-text")
        await sent.delivered(WAIT)
        assert await take(bob) == "canary-text"
    seen = b"".join(mesh.payloads)
    assert b"canary" not in seen
    assert len(seen) > 1000


async def test_what_was_sent_while_the_receiver_was_down_arrives_later(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    async with running(mesh, BOB, tmp_path):
        pass
    async with running(mesh, ALICE, tmp_path) as alice:
        await alice.send(BOB, "text", b"read me later")
        await until(lambda: bool(mesh.mailboxes.get(BOB)))
    async with running(mesh, BOB, tmp_path) as bob:
        assert await take(bob) == "read me later"
        async with running(mesh, ALICE, tmp_path) as alice:
            await until(lambda: len(alice.outbox) == 0)


async def test_what_was_sent_while_we_were_cut_off_goes_out_later(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        await (await alice.send(BOB, "text", b"first")).delivered(WAIT)
        mesh.down.add("relay")
        mesh.cut(ALICE)
        await alice.send(BOB, "text", b"second")
        await until(lambda: any(event.kind == "transport" for event in alice.events))
        mesh.down.clear()
        assert [await take(bob), await take(bob)] == ["first", "second"]


async def test_both_restart_in_the_middle_and_nothing_is_lost_or_doubled(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    received: list[str] = []
    for turn in range(4):
        async with running(mesh, ALICE, tmp_path) as alice:
            for number in range(5):
                await alice.send(BOB, "text", b"%d.%d" % (turn, number))
            if turn % 2:
                await until(lambda: bool(mesh.mailboxes.get(BOB)))
        async with running(mesh, BOB, tmp_path) as bob:
            while (message := await bob.receive(timeout_s=0.3)) is not None:
                received.append(message.text)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        await until(lambda: len(alice.outbox) == 0)
        received += [each.text for each in bob.inbox.unread()]
    assert received == [f"{turn}.{number}" for turn in range(4) for number in range(5)]


async def test_defect_13_a_relay_that_delivers_everything_three_times_does_no_harm(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    mesh.tamper = lambda payload: [payload] * 3
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        for number in range(20):
            await (await alice.send(BOB, "text", b"%d" % number)).delivered(WAIT)
        assert [await take(bob) for _ in range(20)] == [str(number) for number in range(20)]
        assert await bob.receive(timeout_s=0.1) is None


async def test_defect_1_a_forged_copy_before_each_message_does_no_harm(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    mesh.tamper = lambda payload: [payload[:-1] + bytes((payload[-1] ^ 1,)), payload]
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        for number in range(20):
            await (await alice.send(BOB, "text", b"%d" % number)).delivered(WAIT)
        assert [await take(bob) for _ in range(20)] == [str(number) for number in range(20)]
        assert any(event.reason == "header_forged" for event in bob.events)


async def test_a_relay_that_loses_messages_is_made_up_for(
    mesh: MemoryMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_sdk.mesh.outbox.RESEND_AFTER_S", 0.05)
    dropped = 0

    def lose(payload: bytes) -> list[bytes]:
        nonlocal dropped
        dropped += 1
        return [] if dropped % 3 == 0 else [payload]

    mesh.tamper = lose
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        for number in range(12):
            await alice.send(BOB, "text", b"%d" % number)
        assert [await take(bob) for _ in range(12)] == [str(number) for number in range(12)]
        await until(lambda: len(alice.outbox) == 0)


async def test_defect_11_a_refused_knock_is_answered_and_ends_the_wait(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    async with (
        running(mesh, ALICE, tmp_path) as alice,
        running(mesh, BOB, tmp_path, policy=TrustPolicy()) as bob,
    ):
        sent = await alice.send(BOB, "text", b"let me in")
        with pytest.raises(KnockRefusedError) as refused:
            await sent.delivered(WAIT)
        assert refused.value.reason == "edge_missing"
        assert await bob.receive(timeout_s=0.05) is None
        assert len(alice.outbox) == 0


async def test_a_stranger_below_the_threshold_is_refused_and_a_rated_one_let_in(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    edges = tuple(edge for edge in OPEN.edges)
    strict = TrustPolicy(edges=(type(edges[0])(source=ALICE, target=BOB),), threshold=500)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path, policy=strict) as bob:
        with pytest.raises(KnockRefusedError) as refused:
            await (await alice.send(BOB, "text", b"hello")).delivered(WAIT)
        assert refused.value.reason == "trust_below_threshold"
        mesh.ratings[ALICE] = 700
        bob._membership._reputation.clear()
        await (await alice.send(BOB, "text", b"hello")).delivered(WAIT)
        assert await take(bob) == "hello"


async def test_a_registry_outage_lets_no_stranger_in(mesh: MemoryMesh, tmp_path: Path) -> None:
    strict = TrustPolicy(edges=(type(OPEN.edges[0])(source=ALICE, target=BOB),), threshold=500)
    mesh.ratings[ALICE] = 1000
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path, policy=strict) as bob:
        await alice.send(BOB, "text", b"hello")

        def outage(payload: bytes) -> list[bytes]:
            mesh.down.add("registry")
            return [payload]

        mesh.tamper = outage
        await until(lambda: any(event.reason == "trust_unknown" for event in bob.events))
        assert await bob.receive(timeout_s=0.05) is None


async def test_an_edge_that_the_relay_refuses_is_an_error_for_the_sender(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    mesh.forbidden.add((ALICE, BOB))
    async with running(mesh, BOB, tmp_path), running(mesh, ALICE, tmp_path) as alice:
        with pytest.raises(TransportError) as refused:
            await (await alice.send(BOB, "text", b"hello")).delivered(WAIT)
        assert refused.value.reason == "edge_forbidden"


async def test_a_lying_registry_is_found_out(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with (
        running(mesh, name("mallory"), tmp_path),
        running(mesh, BOB, tmp_path),
        running(mesh, ALICE, tmp_path) as alice,
    ):
        mesh.registrations[BOB] = mesh.registrations[name("mallory")]
        with pytest.raises(MeshError) as refused:
            await (await alice.send(BOB, "text", b"for bob only")).delivered(WAIT)
        assert refused.value.reason == "statement_other_peer"
        assert not mesh.payloads


async def test_a_receiver_that_lost_its_sessions_asks_and_gets_everything(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        await (await alice.send(BOB, "text", b"before")).delivered(WAIT)
        assert await take(bob) == "before"
        bob.sessions.forget(ALICE)
        sent = await alice.send(BOB, "text", b"after")
        await sent.delivered(WAIT)
        assert await take(bob) == "after"


async def test_a_second_client_of_the_same_peer_ends_the_first_for_good(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    async with running(mesh, ALICE, tmp_path) as alice:
        mesh.cut(ALICE, "peer_replaced", fatal=True)
        with pytest.raises(TransportError) as ended:
            await alice.receive(timeout_s=0.2)
        assert ended.value.reason == "peer_replaced"


async def test_prekeys_are_topped_up(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with running(mesh, BOB, tmp_path) as bob:
        kept = mesh.prekeys[BOB]
        assert (len(kept.one_time_prekeys), len(kept.one_time_kem_prekeys)) == (60, 24)
        del kept.one_time_prekeys[:50]
        del kept.one_time_kem_prekeys[:20]
        bob._membership.prekeys_low()
        await bob._membership.keep_up()
        assert (len(kept.one_time_prekeys), len(kept.one_time_kem_prekeys)) == (60, 24)
        ids = [key.key_id for key in kept.one_time_prekeys]
        assert len(set(ids)) == 60


async def test_defect_6_sessions_start_when_one_time_keys_were_drained(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    async with running(mesh, BOB, tmp_path) as bob, running(mesh, ALICE, tmp_path) as alice:
        del mesh.prekeys[BOB].one_time_prekeys[:]
        del mesh.prekeys[BOB].one_time_kem_prekeys[:]
        await (await alice.send(BOB, "text", b"hello")).delivered(WAIT)
        assert await take(bob) == "hello"
        assert alice.sessions.of(BOB)[0].post_quantum


async def test_roster_and_presence(mesh: MemoryMesh, tmp_path: Path) -> None:
    profile = Profile(capabilities=("translate", "kars-agent"))
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path, profile=profile):
        assert [each.peer for each in await alice.directory.discover("translate")] == [BOB]
        assert await alice.directory.discover("nothing") == []
        assert await alice.directory.presence(BOB) == "attached"
        assert await alice.directory.presence(name("nobody")) == "away"


async def test_a_message_that_is_not_acknowledged_in_time_is_given_up_aloud(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    async with running(mesh, ALICE, tmp_path) as alice:
        sent = await alice.send(BOB, "text", b"hello", ttl_s=0)
        with pytest.raises(PayloadError) as expired:
            await sent.delivered(WAIT)
        assert expired.value.reason == "message_expired"


async def test_the_outbox_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kars_sdk.mesh.outbox.MAX_ITEMS", 3)
    store = Store(tmp_path, KEY)
    outbox = Outbox(store, lambda: 0.0)
    for _ in range(3):
        outbox.add(BOB, "text", b"x", ttl_s=60)
    with pytest.raises(PayloadError) as full:
        outbox.add(BOB, "text", b"x", ttl_s=60)
    assert full.value.reason == "outbox_full"
    with pytest.raises(PayloadError):
        Outbox(store, lambda: 0.0).add(BOB, "Not a kind", b"x", ttl_s=60)
    store.close()


def data(number: int, stream: bytes = b"s" * 8) -> frames.Data:
    return frames.Data(stream, number, 0, "text", b"%d" % number)


async def test_the_inbox_orders_dedupes_and_passes_gaps_that_last(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store(tmp_path, KEY)
    inbox = Inbox(store, lambda: now[0])

    def accept(number: int) -> list[str]:
        with store.transaction():
            return [each.text for each in inbox.accept(ALICE, data(number))]

    assert accept(0) == ["0"]
    assert accept(0) == []
    assert accept(2) == []
    assert accept(3) == []
    assert accept(2) == []
    assert accept(1) == ["1", "2", "3"]
    assert accept(6) == []
    inbox = Inbox(store, lambda: now[0])  # a restart keeps what is held
    with store.transaction():
        assert inbox.pass_gaps() == []
    now[0] += 60
    with store.transaction():
        assert [each.text for each in inbox.pass_gaps()] == ["6"]
    assert accept(5) == ["5"]  # late rather than lost
    assert accept(5) == []
    assert accept(4) == ["4"]
    assert accept(7) == ["7"]
    assert accept(100_000) == ["100000"]
    assert accept(8) == []
    store.close()


async def test_a_full_inbox_stops_taking_and_loses_nothing(
    mesh: MemoryMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_sdk.mesh.inbox.MAX_UNREAD", 5)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        for number in range(30):
            await alice.send(BOB, "text", b"%d" % number)
        await until(lambda: bob.inbox.full)
        await asyncio.sleep(0.05)
        assert len(bob.inbox.unread()) == 5
        assert [await take(bob) for _ in range(30)] == [str(number) for number in range(30)]


async def test_unread_messages_are_there_after_a_restart(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path):
        await (await alice.send(BOB, "text", b"keep me")).delivered(WAIT)
    async with running(mesh, BOB, tmp_path) as bob:
        assert [each.text for each in bob.inbox.unread()] == ["keep me"]
        await bob.inbox.mark_read(bob.inbox.unread())
        assert [each.text for each in bob.inbox.recently_read()] == ["keep me"]
    async with running(mesh, BOB, tmp_path) as bob:
        assert bob.inbox.unread() == []


async def test_a_relay_of_another_organisation_gets_no_proof(
    mesh: MemoryMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(mesh, ALICE, tmp_path) as alice:
        with pytest.raises(TransportError) as refused:
            alice._prove(relay_pb2.Hello(nonce=bytes(32), relay="spiffe://elsewhere.test/svc/relay"))
        assert (refused.value.reason, refused.value.fatal) == ("relay_mismatch", True)


async def test_deliveries_of_invented_senders_change_nothing(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        for number in range(50):
            for sender in (f"nobody-{number}", str(name(f"ghost-{number}"))):
                mesh.put(sender, BOB, relay_pb2.Envelope(id=bytes(16), payload=b"\x02" + bytes(200)))
        await (await alice.send(BOB, "text", b"the only real one")).delivered(WAIT)
        assert await take(bob) == "the only real one"
        assert any(event.reason == "peer_name_invalid" for event in bob.events)
        assert mesh.mailboxes[BOB] == []


async def test_a_peer_that_begins_ever_new_streams_or_leaves_gaps_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_sdk.mesh.inbox.MAX_HELD_BYTES", 1000)
    store = Store(tmp_path, KEY)
    inbox = Inbox(store, lambda: 0.0)
    for stream in range(30):
        with store.transaction():
            inbox.accept(ALICE, frames.Data(stream.to_bytes(8, "big"), 5, 0, "text", b"early"))
    assert (store.count("order"), store.count("held"), store.count("streams")) == (8, 8, 1)
    released = []
    for number in range(1, 40, 2):
        with store.transaction():
            released += inbox.accept(BOB, frames.Data(bytes(8), number, 0, "text", bytes(300)))
    assert store.count("held") - 8 <= 3
    assert len(released) >= 16
    store.close()


async def test_large_unread_messages_count_by_their_bytes(
    mesh: MemoryMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_sdk.mesh.inbox.MAX_UNREAD_BYTES", 250_000)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        for _ in range(8):
            await alice.send(BOB, "blob", bytes(100_000))
        await until(lambda: bob.inbox.full)
        assert len(bob.inbox.unread()) == 3
        for _ in range(8):
            message = await bob.receive(timeout_s=WAIT)
            assert message is not None


async def test_a_policy_that_cannot_be_read_is_asked_for_again(mesh: MemoryMesh, tmp_path: Path) -> None:
    endpoint = mesh.endpoint(ALICE)
    store = Store(tmp_path / "alice", KEY)
    answers = [b"{", b'{"unknown": 1}', b'{"threshold": 0}']

    async def policy() -> TrustPolicy:
        return TrustPolicy.from_json(answers.pop(0))

    membership = Membership(
        name=ALICE,
        store=store,
        directory=Directory(endpoint),
        trust=lambda: mesh.authority.trust,
        policy=policy,
    )
    async with MeshClient(membership, endpoint, min_backoff_s=0.01) as client:
        await client.attached(WAIT)
        assert [event.reason for event in client.events] == ["trust_policy_invalid"] * 2
        assert client.sessions.policy.threshold == 0
    store.close()
