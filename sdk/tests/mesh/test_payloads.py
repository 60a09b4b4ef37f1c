"""Text, JSON, files, groups and roster between whole agents."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_sdk.mesh import files, frames, payloads
from kars_sdk.mesh.agent import Letter, MeshAgent
from kars_sdk.mesh.errors import IdentityError, MalformedError, MeshError, PayloadError
from kars_sdk.mesh.files import CHUNK_BYTES, Incoming, Manifest
from kars_sdk.mesh.groups import Group, Groups
from kars_sdk.mesh.inbox import Message
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.testing import OPEN, Authority, name
from kars_sdk.mesh.testing_mesh import MemoryMesh
from kars_sdk.mesh.transfers import Transfers
from kars_sdk.mesh.trust import TrustPolicy
from kars_sdk.mesh.upkeep import Profile

ALICE, BOB, CAROL = name("alice"), name("bob"), name("carol")
KEY = bytes(range(32))
WAIT = 20


@pytest.fixture
def mesh(authority: Authority) -> MemoryMesh:
    return MemoryMesh(authority)


async def anybody() -> TrustPolicy:
    return OPEN


@contextlib.asynccontextmanager
async def running(
    mesh: MemoryMesh, peer: PeerName, folder: Path, *, capabilities: tuple[str, ...] = (),
    max_file_bytes: int = 64 << 20,
) -> AsyncIterator[MeshAgent]:  # fmt: skip
    home = folder / peer.rpartition("/")[2]
    store = Store(home, KEY)
    endpoint = mesh.endpoint(peer)
    try:
        async with MeshAgent(
            name=peer, store=store, transport=endpoint, registry=endpoint, trust=lambda: mesh.authority.trust,
            policy=anybody, incoming=home / "incoming", profile=Profile(capabilities=capabilities),
            max_file_bytes=max_file_bytes, min_backoff_s=0.02,
        ) as agent:  # fmt: skip
            await agent.client.attached(WAIT)
            yield agent
    finally:
        store.close()


async def take(agent: MeshAgent, kind: str) -> Letter:
    found = await agent.letters(lambda letter: letter.kind == kind, timeout_s=WAIT)
    assert found, f"no {kind} came"
    await agent.mark_read(found[:1])
    return found[0]


def content(size: int) -> bytes:
    return hashlib.shake_128(b"file").digest(size)


def written(folder: Path, file_name: str, size: int) -> Path:
    path = folder / file_name
    path.write_bytes(content(size))
    return path


async def test_text_and_json_arrive_as_what_they_are(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        await alice.send_text(BOB, "grüße")
        await alice.send_json(BOB, {"task": "translate", "parts": [1, 2.5, None, True]})
        assert (await take(bob, "text")).text == "grüße"
        letter = await take(bob, "json")
        assert json.loads(letter.text) == {"task": "translate", "parts": [1, 2.5, None, True]}
        assert letter.message.peer == ALICE


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * 1024 * 1024 + 17])
async def test_a_file_arrives_whole(mesh: MemoryMesh, tmp_path: Path, size: int) -> None:
    path = written(tmp_path, "report.pdf", size)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        transfer = await alice.send_file(BOB, path, description="the report")
        assert await alice.transfers.finished(transfer, WAIT) == "received"
        told = json.loads((await take(bob, "file")).text)
    assert told["sha256"] == hashlib.sha256(content(size)).hexdigest()
    assert (told["name"], told["size"], told["description"]) == ("report.pdf", size, "the report")
    assert Path(told["path"]).read_bytes() == content(size)
    assert sorted(each.name for each in (tmp_path / "bob" / "incoming").iterdir()) == ["report.pdf"]


async def test_a_transfer_goes_on_after_both_were_restarted(mesh: MemoryMesh, tmp_path: Path) -> None:
    path = written(tmp_path, "big.bin", 6 * 1024 * 1024)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        await alice.send_file(BOB, path)
        async with asyncio.timeout(WAIT):
            while not list((tmp_path / "bob" / "incoming").glob(".*.partial")):
                await asyncio.sleep(0.005)
        del bob
    assert not (tmp_path / "bob" / "incoming" / "big.bin").exists()
    async with running(mesh, BOB, tmp_path) as bob, running(mesh, ALICE, tmp_path):
        told = json.loads((await take(bob, "file")).text)
    assert Path(told["path"]).read_bytes() == content(6 * 1024 * 1024)


async def test_a_second_file_of_that_name_gets_another(mesh: MemoryMesh, tmp_path: Path) -> None:
    path = written(tmp_path, "notes.txt", 10)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        for _ in range(2):
            transfer = await alice.send_file(BOB, path)
            await alice.transfers.finished(transfer, WAIT)
            await take(bob, "file")
    assert sorted(each.name for each in (tmp_path / "bob" / "incoming").iterdir()) == [
        "notes-2.txt",
        "notes.txt",
    ]


async def test_a_file_over_the_cap_is_refused_on_both_sides(mesh: MemoryMesh, tmp_path: Path) -> None:
    path = written(tmp_path, "big.bin", 3000)
    async with (
        running(mesh, ALICE, tmp_path) as alice,
        running(mesh, BOB, tmp_path, max_file_bytes=2000) as bob,
    ):
        transfer = await alice.send_file(BOB, path)
        assert await alice.transfers.finished(transfer, WAIT) == "file_too_large"
        with pytest.raises(PayloadError) as refused:
            await bob.send_file(ALICE, path)
        assert refused.value.reason == "file_too_large"
    assert not (tmp_path / "bob" / "incoming" / "big.bin").exists()


async def test_a_file_that_changed_after_the_offer_is_not_passed_off(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    path = written(tmp_path, "moving.bin", 3 * CHUNK_BYTES)
    async with running(mesh, BOB, tmp_path):
        pass
    async with running(mesh, ALICE, tmp_path) as alice:
        transfer = await alice.send_file(BOB, path)
        path.write_bytes(bytes(3 * CHUNK_BYTES))
        async with running(mesh, BOB, tmp_path):
            assert await alice.transfers.finished(transfer, WAIT) == "file_changed"
    assert not (tmp_path / "bob" / "incoming" / "moving.bin").exists()


@pytest.mark.parametrize(
    "bad",
    [
        "../x",
        "a/b",
        "a\0b",
        "..",
        ".",
        ".hidden",
        "",
        " x",
        "x\n",
        "a\\b",
        "C:x",
        "x" * 256,
        "é" * 200,
        "x\u202e.txt",
    ],
)
def test_names_that_look_like_a_path_are_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(PayloadError) as refused:
        Manifest(transfer_id=bytes(16), name=bad, size=0, sha256=bytes(32), chunk_hashes=())
    assert refused.value.reason == "file_name_refused"
    raw = bytes(16) + len(bad.encode()).to_bytes(4, "big") + bad.encode() + bytes(8 + 32 + 4)
    with pytest.raises((PayloadError, MalformedError)):
        Manifest.decode(raw)


def test_manifests_that_do_not_add_up_are_refused() -> None:
    for size, count in ((1, 0), (1, 2), (CHUNK_BYTES, 81), (files.MAX_FILE_BYTES + 1, files.MAX_CHUNKS + 1)):
        with pytest.raises(PayloadError) as refused:
            Manifest(
                transfer_id=bytes(16),
                name="x",
                size=size,
                sha256=bytes(32),
                chunk_hashes=(bytes(32),) * count,
            )
        assert refused.value.reason == "manifest_invalid"


def test_wrong_chunks_and_wrong_wholes_write_nothing(tmp_path: Path) -> None:
    good = files.manifest(written(tmp_path, "x.bin", CHUNK_BYTES + 5))
    incoming = Incoming(tmp_path / "in", good)
    for index, chunk, reason in (
        (0, bytes(CHUNK_BYTES), "chunk_wrong"),
        (2, b"", "chunk_unknown"),
        (1, b"", "chunk_wrong"),
    ):
        with pytest.raises(PayloadError) as refused:
            incoming.write(index, chunk)
        assert refused.value.reason == reason
    assert incoming.missing(9) == [0, 1]
    incoming.abandon()
    lying = Manifest(
        transfer_id=bytes(16), name="x.bin", size=good.size, sha256=bytes(32), chunk_hashes=good.chunk_hashes
    )
    incoming = Incoming(tmp_path / "in", lying)
    for index in range(2):
        incoming.write(index, content(CHUNK_BYTES + 5)[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    with pytest.raises(PayloadError) as wrong:
        incoming.finish()
    assert wrong.value.reason == "file_wrong"
    assert list((tmp_path / "in").iterdir()) == []


def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    offered = files.manifest(written(tmp_path, "x.bin", 5))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f".{offered.transfer_id.hex()}.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(PayloadError):
        Incoming(tmp_path / "in", offered)
    assert not (tmp_path / "victim").exists()


async def test_a_stranger_gets_no_chunk_of_a_file_offered_to_another(
    mesh: MemoryMesh, tmp_path: Path
) -> None:
    path = written(tmp_path, "secret.bin", 100)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, CAROL, tmp_path) as carol:
        transfer = await alice.send_file(BOB, path)
        sent = await carol.client.send(ALICE, "file/request", files.encode_request(transfer, [0]))
        await sent.delivered(WAIT)
        await (await carol.send_text(ALICE, "and now")).delivered(WAIT)
        await take(alice, "text")
        await asyncio.sleep(0.05)
        assert carol.client.inbox.unread() == []


async def test_group_messages_reach_all_members_and_nobody_else(mesh: MemoryMesh, tmp_path: Path) -> None:
    async with (
        running(mesh, ALICE, tmp_path) as alice,
        running(mesh, BOB, tmp_path) as bob,
        running(mesh, CAROL, tmp_path) as carol,
    ):
        group = await alice.create_group("writers", [BOB, CAROL])
        await alice.send_group(group.group_id, "hello all")
        for member in (bob, carol):
            letter = await take(member, "group")
            assert (letter.text, letter.group, letter.message.peer) == ("hello all", "writers", ALICE)
        await bob.send_group(group.group_id, "hello from bob")
        assert (await take(alice, "group")).text == "hello from bob"
        assert (await take(carol, "group")).text == "hello from bob"

        await alice.change_group(group.group_id, remove=[CAROL])
        await alice.send_group(group.group_id, "without carol")
        assert (await take(bob, "group")).text == "without carol"
        async with asyncio.timeout(WAIT):
            while carol.groups.all():
                await asyncio.sleep(0.01)
        with pytest.raises(PayloadError) as refused:
            await carol.send_group(group.group_id, "still here")
        assert refused.value.reason == "group_unknown"
        forged = Groups.encode_text(group, "I am still a member")
        await (await carol.client.send(BOB, "group/message", forged)).delivered(WAIT)
        await (await carol.send_text(BOB, "after it")).delivered(WAIT)
        assert (await take(bob, "text")).text == "after it"
        assert await bob.letters(lambda letter: letter.kind == "group") == []


async def test_only_the_owner_changes_a_group(mesh: MemoryMesh, tmp_path: Path) -> None:
    store = Store(tmp_path / "g", KEY)
    groups = Groups(store, BOB)
    made = Groups(Store(tmp_path / "a", KEY), ALICE).create("writers", frozenset({BOB}))
    groups.updated(ALICE, made.encode())
    stolen = Group(
        group_id=made.group_id, name="writers", owner=CAROL, version=9, members=frozenset({BOB, CAROL})
    )
    for sender, group in ((CAROL, made), (CAROL, stolen)):
        with pytest.raises(PayloadError):
            groups.updated(sender, group.encode())
    older = Group(group_id=made.group_id, name="old", owner=ALICE, version=0, members=frozenset({BOB, CAROL}))
    assert groups.updated(ALICE, older.encode()).name == "writers"
    with pytest.raises(PayloadError) as refused:
        groups.change(made.group_id, add=frozenset({CAROL}))
    assert refused.value.reason == "group_not_ours"
    with pytest.raises(PayloadError):
        groups.create("x", frozenset(name(f"m{number}") for number in range(64)))
    store.close()


async def test_peers_are_resolved_by_name_and_never_by_guess(mesh: MemoryMesh, tmp_path: Path) -> None:
    other = name("bob", namespace="other")
    async with (
        running(mesh, ALICE, tmp_path) as alice,
        running(mesh, BOB, tmp_path / "1", capabilities=("translate",)),
    ):
        assert await alice.resolve("bob") == BOB
        assert [each.peer for each in await alice.roster("translate")] == [BOB]
        assert await alice.resolve(other) == other
        with pytest.raises(IdentityError) as unknown:
            await alice.resolve("nobody")
        assert unknown.value.reason == "peer_unknown"
        async with running(mesh, other, tmp_path / "2"):
            with pytest.raises(IdentityError) as ambiguous:
                await alice.resolve("bob")
            assert ambiguous.value.reason == "peer_ambiguous"


@given(st.binary(max_size=600))
def test_bodies_of_any_bytes_are_read_or_refused(data: bytes) -> None:
    readers: list[Callable[[bytes], object]] = [
        payloads.decode_json, payloads.decode_text, Manifest.decode, files.decode_request, files.decode_chunk,
        files.decode_end, Group.decode, frames.decode,
    ]  # fmt: skip
    for read in readers:
        with contextlib.suppress(MeshError):
            read(data)


@pytest.mark.parametrize(
    "bad",
    [b'{"a":1,"a":2}', b"NaN", b"Infinity", b"1e999", b"[" * 40 + b"]" * 40, b"\xff", b"", b"[" * 100_000,
     b'"' + b"x" * payloads.MAX_JSON_BYTES + b'"'],
)  # fmt: skip
def test_json_that_could_hurt_a_reader_is_refused(bad: bytes) -> None:
    with pytest.raises(PayloadError):
        payloads.decode_json(bad)


def test_what_is_too_large_is_refused_before_it_is_sent() -> None:
    with pytest.raises(PayloadError):
        payloads.encode_text("x" * (payloads.MAX_TEXT_BYTES + 1))
    with pytest.raises(PayloadError):
        payloads.encode_json("x" * payloads.MAX_JSON_BYTES)
    with pytest.raises(PayloadError):
        payloads.encode_json(float("nan"))
    with pytest.raises(PayloadError):
        payloads.encode_text("\ud800")
    with pytest.raises(PayloadError):
        frames.encode(frames.Data(bytes(8), 0, 0, "text", os.urandom(frames.MAX_BODY_BYTES + 1)))


async def test_a_transfer_whose_question_was_lost_asks_again(mesh: MemoryMesh, tmp_path: Path) -> None:
    now = [0.0]
    asked: list[tuple[PeerName, str]] = []

    async def post(peer: PeerName, kind: str, body: bytes) -> None:
        asked.append((peer, kind))

    store = Store(tmp_path / "s", KEY)
    moving = Transfers(store, tmp_path / "in", post, clock=lambda: now[0])
    offered = files.manifest(written(tmp_path, "x.bin", 3 * CHUNK_BYTES))
    message = Message(
        number=1, peer=ALICE, kind="file/offer", body=offered.encode(), sent_at=0, received_at=0
    )
    assert await moving.handle(message) is None
    await moving.nudge()
    assert asked == [(ALICE, "file/request")]
    now[0] += 61
    await moving.nudge()
    assert asked == [(ALICE, "file/request")] * 2
    moving.close()
    store.close()


async def test_a_full_outbox_slows_a_transfer_down_and_does_not_break_it(
    mesh: MemoryMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_sdk.mesh.outbox.MAX_ITEMS", 3)
    path = written(tmp_path, "big.bin", 12 * CHUNK_BYTES)
    async with running(mesh, ALICE, tmp_path) as alice, running(mesh, BOB, tmp_path) as bob:
        transfer = await alice.send_file(BOB, path)
        assert await alice.transfers.finished(transfer, WAIT) == "received"
        assert Path(json.loads((await take(bob, "file")).text)["path"]).stat().st_size == 12 * CHUNK_BYTES
