"""What every mailbox store promises: one set of tests over SQLite and over a real NATS JetStream."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from kars.mesh.v1 import relay_pb2
from kars_common.errors import UnavailableError
from kars_common.spiffe import SpiffeId
from kars_common.testing import MemoryAuthority
from kars_relay.frames.writing import varint
from kars_relay.mailbox import MailboxStore, NewRun, Reader, StoredRun
from kars_relay.mailbox.jetstream import JetStreamMailboxes
from kars_relay.mailbox.sqlite import SqliteMailboxes
from kars_relay_testkit.nats import NatsServers

ALICE, BOB, CAROL = (f"spiffe://kars.local/ns/team/sandbox/{name}" for name in ("alice", "bob", "carol"))
Opener = Callable[[], Awaitable[MailboxStore]]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with NatsServers(directory=tmp_path_factory.mktemp("nats")) as servers:
        yield servers.start()


@pytest.fixture(params=["sqlite", "jetstream"])
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    opened: list[MailboxStore] = []
    if request.param == "jetstream":
        servers = request.getfixturevalue("nats")
        make: Callable[[], MailboxStore] = lambda: JetStreamMailboxes(servers.url)  # noqa: E731
    else:
        make = lambda: SqliteMailboxes(tmp_path / "mailboxes.db")  # noqa: E731

    async def open_store() -> MailboxStore:
        store = make()
        await store.open()
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        for peer in (ALICE, BOB, CAROL):
            await store.remove(peer)
        await store.close()


def run(
    *payloads: bytes,
    sender: str = ALICE,
    to: str = BOB,
    ids: list[bytes] | None = None,
    ttl_s: int = 3600,
    most: int = 1000,
    share: int = 100,
) -> NewRun:
    ids = ids or [os.urandom(16) for _ in payloads]
    fields = [
        relay_pb2.Envelope(id=i, payload=p).SerializeToString() for i, p in zip(ids, payloads, strict=True)
    ]
    pieces = [b"\x12" + varint(len(envelope)) + envelope for envelope in fields]
    ends = [sum(map(len, pieces[: place + 1])) for place in range(len(pieces))]
    return NewRun(
        mailbox=to, sender=sender, to=to, ids=ids, ends=ends, body=b"".join(pieces),
        expires_at_s=int(time.time()) + ttl_s, max_envelopes=most, max_bytes=10**8, share_percent=share,
    )  # fmt: skip


def payloads(runs: list[StoredRun]) -> list[bytes]:
    return [
        envelope.payload
        for stored in runs
        for envelope in relay_pb2.Submission.FromString(stored.body).envelopes
    ]


async def read(reader: Reader, wake: asyncio.Event, count: int) -> list[StoredRun]:
    found: list[StoredRun] = []
    async with asyncio.timeout(8):
        while sum(stored.count for stored in found) < count:
            wake.clear()
            more = reader.take(100, 1 << 20)
            found += more
            if not more:
                await wake.wait()
    return found


async def test_runs_come_back_in_order_with_rising_numbers_and_their_senders(opener: Opener) -> None:
    store = await opener()
    await store.ensure(BOB, 1)
    await asyncio.gather(store.append([run(b"1", b"2"), run(b"3")]), store.append([run(b"4", sender=CAROL)]))
    wake = asyncio.Event()
    found = await read(await store.reader(BOB, wake.set), wake, 4)

    assert sorted(payloads(found)) == [b"1", b"2", b"3", b"4"]
    assert [p for p in payloads(found) if p != b"4"] == [b"1", b"2", b"3"]
    assert [stored.sender for stored in found if b"4" in payloads([stored])] == [CAROL]
    assert [stored.first_seq for stored in found] == sorted(stored.first_seq for stored in found)
    assert abs(found[0].stored_at_ms / 1000 - time.time()) < 60


async def test_a_reader_that_waits_is_woken(opener: Opener) -> None:
    store = await opener()
    await store.ensure(BOB, 1)
    wake = asyncio.Event()
    reader = await store.reader(BOB, wake.set)
    assert reader.take(10, 1000) == []
    waiting = asyncio.create_task(read(reader, wake, 1))
    await store.append([run(b"news")])
    assert payloads(await waiting) == [b"news"]


async def test_what_is_acknowledged_is_gone_and_the_rest_is_read_again(opener: Opener) -> None:
    store = await opener()
    await store.ensure(BOB, 1)
    await store.append([run(b"1"), run(b"2"), run(b"3")])
    wake = asyncio.Event()
    found = await read(await store.reader(BOB, wake.set), wake, 3)
    store.ack(BOB, found[1].last_seq)
    await settled(store)
    again = await read(await store.reader(BOB, wake.set), wake, 1)

    assert payloads(again) == [b"3"]
    assert again[0].first_seq == found[2].first_seq
    assert await store.acked_through(BOB) >= found[1].last_seq


async def settled(store: MailboxStore) -> None:
    """Wait until acknowledgements are durable."""
    if isinstance(store, SqliteMailboxes):
        await store.flush()
        return
    async with asyncio.timeout(5):
        while (await store.usage("", 10))[0].envelopes > 1:
            await asyncio.sleep(0.02)


async def test_duplicates_are_dropped_for_each_sender_and_mailbox(opener: Opener) -> None:
    store = await opener()
    for peer in (BOB, CAROL):
        await store.ensure(peer, 1)
    same = [os.urandom(16), os.urandom(16)]
    assert await store.append([run(b"1", b"2", ids=same)]) == [[]]
    assert await store.append([run(b"x", b"3", ids=[same[1], os.urandom(16)])]) == [[]]
    await store.append([run(b"other sender", ids=same[:1], sender=CAROL)])
    await store.append([run(b"other mailbox", ids=same[:1], to=CAROL)])
    wake = asyncio.Event()

    assert payloads(await read(await store.reader(BOB, wake.set), wake, 4)) == [
        b"1", b"2", b"3", b"other sender",
    ]  # fmt: skip
    assert payloads(await read(await store.reader(CAROL, wake.set), wake, 1)) == [b"other mailbox"]


async def test_a_full_mailbox_refuses_the_rest_of_a_run_by_name(opener: Opener) -> None:
    store = await opener()
    await store.ensure(BOB, 1)
    first = await store.append([run(*[b"x"] * 8, most=10, share=50)])
    assert [(r.start, r.count, r.reason) for r in first[0]] == [(5, 3, relay_pb2.REFUSAL_REASON_SENDER_SHARE)]
    second = await store.append([run(*[b"y"] * 8, most=10, sender=CAROL)])
    assert [(r.start, r.count, r.reason) for r in second[0]] == [
        (5, 3, relay_pb2.REFUSAL_REASON_RECIPIENT_FULL)
    ]
    wake = asyncio.Event()
    assert payloads(await read(await store.reader(BOB, wake.set), wake, 10)) == [b"x"] * 5 + [b"y"] * 5


async def test_nothing_is_kept_for_a_mailbox_that_does_not_exist(opener: Opener) -> None:
    store = await opener()
    assert not await store.knows(BOB)
    refused = await store.append([run(b"x")])
    assert refused[0][0].reason == relay_pb2.REFUSAL_REASON_RECIPIENT_UNKNOWN
    await store.ensure(BOB, 1)
    assert await store.knows(BOB)
    await store.append([run(b"x")])
    await store.remove(BOB)
    assert not await store.knows(BOB)
    await store.ensure(BOB, 1)
    wake = asyncio.Event()
    assert (await store.reader(BOB, wake.set)).take(10, 1000) == []


async def test_what_is_past_its_time_is_not_delivered(opener: Opener) -> None:
    store = await opener()
    await store.ensure(BOB, 1)
    await store.append([run(b"short", ttl_s=1), run(b"long")])
    await asyncio.sleep(1.6)  # the time to live itself, by the server's own clock
    if isinstance(store, SqliteMailboxes):
        assert await store.sweep() == 1
    wake = asyncio.Event()
    assert payloads(await read(await store.reader(BOB, wake.set), wake, 1)) == [b"long"]


async def test_serial_and_token_are_kept_and_only_rise(opener: Opener) -> None:
    store = await opener()
    assert await store.ensure(BOB, 5) == 5
    assert await store.ensure(BOB, 3) == 5
    assert await store.ensure(BOB, 6) == 6
    assert await store.token(BOB) == b""
    await store.set_token(BOB, b"t" * 32)
    assert await store.ensure(BOB, 1) == 6
    assert await store.token(BOB) == b"t" * 32
    assert await store.token(CAROL) == b""


async def test_everything_that_was_resolved_survives_another_opening(opener: Opener) -> None:
    store = await opener()
    await store.ensure(BOB, 4)
    same = [os.urandom(16)]
    await store.append([run(b"1", ids=same), run(b"2")])
    other = await opener()  # as another process would find it; the first one has not been closed
    await other.append([run(b"1", ids=same), run(b"3")])
    wake = asyncio.Event()

    assert payloads(await read(await other.reader(BOB, wake.set), wake, 3)) == [b"1", b"2", b"3"]
    assert await other.ensure(BOB, 0) == 4
    usage = await other.usage("", 10)
    assert [(box.peer, box.envelopes) for box in usage] == [(BOB, 3)]
    assert usage[0].size_bytes > 0


async def test_a_run_is_split_where_a_window_ends_and_an_oversized_envelope_passes_alone(
    opener: Opener,
) -> None:
    store = await opener()
    await store.ensure(BOB, 1)
    await store.append([run(*[b"%d" % n for n in range(10)]), run(b"x" * 5000), run(b"end")])
    wake = asyncio.Event()
    reader = await store.reader(BOB, wake.set)
    found: list[bytes] = []
    sizes: list[int] = []
    async with asyncio.timeout(8):
        while len(found) < 12:
            wake.clear()
            part = reader.take(4, 1000)
            if not part:
                await wake.wait()
                continue
            sizes.append(sum(stored.count for stored in part))
            found += payloads(part)

    assert found == [b"%d" % n for n in range(10)] + [b"x" * 5000, b"end"]
    assert max(sizes) <= 4


async def test_another_replica_that_reads_a_mailbox_takes_it_over(nats: NatsServers) -> None:
    first, second = JetStreamMailboxes(nats.url), JetStreamMailboxes(nats.url)
    for store in (first, second):
        await store.open()
    try:
        await first.ensure(CAROL, 1)
        replaced = asyncio.Event()
        await first.reader(CAROL, lambda: None, replaced.set)
        await second.reader(CAROL, lambda: None)
        async with asyncio.timeout(5):
            await replaced.wait()
    finally:
        await first.remove(CAROL)
        for store in (first, second):
            await store.close()


async def test_a_nats_server_is_verified_and_gets_its_token_from_a_file(tmp_path: Path) -> None:
    authority = MemoryAuthority()
    svid = authority.issue(SpiffeId.service("kars.local", "nats"), dns_names=("localhost",))
    for name, data in (
        ("tls.crt", svid.certificate_chain_pem),
        ("tls.key", svid.private_key_pem),
        ("ca.crt", svid.trust_bundle_pem),
        ("other.crt", MemoryAuthority().trust_bundle_pem),
        ("token", b"open-sesame-1234\n"),
        ("wrong", b"another\n"),
    ):
        (tmp_path / name).write_bytes(data)
    tls = f'tls {{ cert_file: "{tmp_path}/tls.crt", key_file: "{tmp_path}/tls.key" }}'
    extra = f'{tls}\nauthorization {{ token: "open-sesame-1234" }}'
    with NatsServers(directory=tmp_path / "nats", extra=extra) as servers:
        servers.start()
        url = f"tls://localhost:{servers.ports[0]}"
        store = JetStreamMailboxes(url, token_file=tmp_path / "token", ca_file=tmp_path / "ca.crt")
        await store.open()
        await store.ensure(BOB, 1)
        assert await store.append([run(b"over TLS")]) == [[]]
        await store.close()
        for token, ca in (("wrong", "ca.crt"), ("token", "other.crt")):
            with pytest.raises(UnavailableError) as refused:
                await JetStreamMailboxes(
                    url, token_file=tmp_path / token, ca_file=tmp_path / ca, start_s=1
                ).open()
            assert refused.value.reason == "store_unavailable"
            assert "open-sesame" not in str(refused.value)
