"""Backup while the relay works, restore elsewhere, and archives that are not what they were."""

import os
import tarfile
from pathlib import Path

import pytest
from kars.mesh.v1 import registry_pb2
from kars_common.errors import FailedPreconditionError, InvalidInputError
from kars_relay import backup
from kars_relay_testkit import RelayProcess
from kars_relay_testkit.house import House, make_house, texts

from .test_registry import Desk


async def test_a_relay_that_is_restored_from_a_backup_goes_on(tmp_path: Path) -> None:
    for house in make_house(tmp_path / "first"):
        alice, bob = house.world.peer("alice"), house.world.peer("bob")
        async with Desk(house, bob) as desk:
            before = await desk.register("kept")
            await desk.publish(count=3)
        async with house.stream(alice) as sender:
            ids = await sender.submit(bob, [b"one", b"two"])
            await sender.decide()
            assert backup.main(["create", str(house.relay.directory / "state"), str(tmp_path / "b.tar")]) == 0
            assert not await sender.send(bob, [b"after the backup"])
        house.relay.kill()
        assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600

        second = tmp_path / "second"
        house.world.write_relay(second, None)
        assert backup.main(["restore", str(tmp_path / "b.tar"), str(second / "state")]) == 0
        with RelayProcess(directory=second) as relay:
            again = House(house.world, relay.start())
            async with Desk(again, alice) as desk:
                assert (await desk.lookup(bob)).registration == before
                head = await desk.stub.GetTreeHead(registry_pb2.GetTreeHeadRequest(), timeout=5)
                assert head.signed_note
            async with again.stream(alice) as sender, again.stream(bob) as receiver:
                await sender.send(bob, [b"one", b"three"], ids=[ids[0], os.urandom(16)])
                assert texts(await receiver.receive(3)) == [b"one", b"two", b"three"]


def test_a_state_directory_that_is_none_and_a_target_that_is_not_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        backup.create(tmp_path, tmp_path / "x.tar")
    assert refused.value.reason == "backup_source_invalid"
    assert backup.main(["create", str(tmp_path), str(tmp_path / "x.tar")]) == 1


def archive_of(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    for name in ("audit", "registrations", "policy"):
        (state / name).mkdir(parents=True)
        (state / name / "00000000000000000000.jsonl").write_bytes(b'{"a":1}\n{"half')
    for name in ("audit-signing.key", "registrations-signing.key"):
        (state / name).write_bytes(os.urandom(32))
    import sqlite3

    with sqlite3.connect(state / "registry.db") as db:
        db.execute("CREATE TABLE t (x)")
    backup.create(state, tmp_path / "good.tar")
    return tmp_path / "good.tar"


def test_half_a_record_is_left_out_and_the_target_must_be_empty(tmp_path: Path) -> None:
    archive = archive_of(tmp_path)
    target = tmp_path / "target"
    backup.restore(archive, target)
    assert (target / "audit" / "00000000000000000000.jsonl").read_bytes() == b'{"a":1}\n'
    assert (target / "audit-signing.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FailedPreconditionError) as refused:
        backup.restore(archive, target)
    assert refused.value.reason == "backup_target_not_empty"


@pytest.mark.parametrize("name", ["../evil", "audit/../../evil", "/etc/evil", "unknown", "audit"])
def test_an_archive_with_a_foreign_member_writes_nothing(tmp_path: Path, name: str) -> None:
    archive = archive_of(tmp_path)
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo(name)
        tar.addfile(info)
    with pytest.raises(InvalidInputError) as refused:
        backup.restore(archive, tmp_path / "target")
    assert refused.value.reason == "backup_damaged"
    assert not (tmp_path / "target").exists()


def test_a_flipped_byte_and_a_cut_archive_are_noticed(tmp_path: Path) -> None:
    archive = archive_of(tmp_path)
    good = archive.read_bytes()
    place = good.index(b'{"a":1}')
    archive.write_bytes(good[:place] + b'{"a":2}' + good[place + 7 :])
    with pytest.raises(InvalidInputError):
        backup.check(archive)
    archive.write_bytes(good[: len(good) // 2 // 512 * 512])
    assert backup.main(["check", str(archive)]) == 1
