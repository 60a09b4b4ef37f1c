"""Bodies beside the index: nothing needed is lost, nothing dead is kept, a damaged store says so."""

import asyncio
import os
from pathlib import Path

import pytest
from kars_common.errors import UnavailableError
from kars_relay.mailbox import NewRun
from kars_relay.mailbox.bodies import BodyFiles
from kars_relay.mailbox.sqlite import SqliteMailboxes

from .test_mailbox_stores import BOB, CAROL, payloads, read, run


def segments(path: Path) -> list[Path]:
    return sorted(path.with_suffix(".bodies").glob("*.seg"))


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BodyFiles.__init__, "__defaults__", (10_000,))


async def opened(path: Path) -> SqliteMailboxes:
    store = SqliteMailboxes(path)
    await store.open()
    for peer in (BOB, CAROL):
        await store.ensure(peer, 1)
    return store


async def send(store: SqliteMailboxes, *runs: NewRun) -> None:
    for one in runs:
        assert await store.append([one]) == [[]]


async def test_segments_go_when_everything_in_them_was_acknowledged(
    tmp_path: Path, small_segments: None
) -> None:
    path = tmp_path / "mailboxes.db"
    store = await opened(path)
    await send(store, *[run(os.urandom(3000)) for _ in range(20)])
    assert len(segments(path)) >= 5
    wake = asyncio.Event()
    found = await read(await store.reader(BOB, wake.set), wake, 20)
    store.ack(BOB, found[-1].last_seq)
    await store.flush()
    assert len(segments(path)) == 1  # the one that is written to
    await store.close()


async def test_a_segment_held_by_one_small_run_is_copied_and_goes(
    tmp_path: Path, small_segments: None
) -> None:
    path = tmp_path / "mailboxes.db"
    store = await opened(path)
    for number in range(5):
        await send(store, run(b"kept %d" % number, to=CAROL), *[run(os.urandom(4000)) for _ in range(3)])
    wake = asyncio.Event()
    found = await read(await store.reader(BOB, wake.set), wake, 15)
    store.ack(BOB, found[-1].last_seq)
    await store.flush()
    held = len(segments(path))
    for _ in range(held):
        await store.sweep()
    assert len(segments(path)) <= 2 < held
    await store.close()

    again = await opened(path)
    wake = asyncio.Event()
    kept = await read(await again.reader(CAROL, wake.set), wake, 5)
    assert payloads(kept) == [b"kept %d" % number for number in range(5)]
    await again.close()


async def test_what_no_row_names_is_removed_at_start(tmp_path: Path) -> None:
    path = tmp_path / "mailboxes.db"
    store = await opened(path)
    await send(store, run(b"mail"))
    await store.close()
    orphan = segments(path)[0].with_name("000000000099.seg")
    orphan.write_bytes(b"written, never committed")

    store = await opened(path)
    assert not orphan.exists()
    wake = asyncio.Event()
    assert payloads(await read(await store.reader(BOB, wake.set), wake, 1)) == [b"mail"]
    await store.close()


@pytest.mark.parametrize("damage", ["missing", "short"])
async def test_a_store_that_lacks_a_body_does_not_start_as_if_nothing_were_lost(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "mailboxes.db"
    store = await opened(path)
    await send(store, run(b"mail"))
    await store.close()
    segment = segments(path)[0]
    if damage == "missing":
        segment.unlink()
    else:
        os.truncate(segment, 5)
    with pytest.raises(UnavailableError, match="missing or short"):
        await SqliteMailboxes(path).open()


async def test_a_disk_that_fails_refuses_everything_after_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path / "mailboxes.db")
    await send(store, run(b"before"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kars_relay.mailbox.bodies.os.writev", full)
    with pytest.raises(UnavailableError):
        await store.append([run(b"lost")])
    monkeypatch.undo()
    with pytest.raises(UnavailableError):
        await store.append([run(b"after")])
    with pytest.raises(UnavailableError):
        await store.run()
    await store.close()

    again = await opened(tmp_path / "mailboxes.db")
    wake = asyncio.Event()
    assert payloads(await read(await again.reader(BOB, wake.set), wake, 1)) == [b"before"]
    await again.close()


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = BodyFiles(tmp_path)
    bodies.recover([])
    monkeypatch.setattr("kars_relay.mailbox.bodies.os.writev", lambda fd, parts: os.write(fd, parts[0][:3]))
    segment, places = bodies.append([b"hello", b"world"])
    assert [bodies.read(segment, place, 5) for place in places] == [b"hello", b"world"]
    with pytest.raises(OSError, match="ends before"):
        bodies.read(segment, 8, 5)
    bodies.close()
