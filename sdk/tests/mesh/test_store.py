"""State on disk: sealed, whole, one writer, never older than what was released."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from kars_sdk.mesh.errors import StoreError
from kars_sdk.mesh.store import Store

KEY = bytes(range(32))


def filled(folder: Path) -> Store:
    store = Store(folder, KEY)
    with store.transaction():
        for number in range(5):
            store.put("kind", b"%d" % number, b"value %d" % number)
    return store


def reason_of_opening(folder: Path, key: bytes = KEY) -> str:
    with pytest.raises(StoreError) as refused:
        Store(folder, key)
    return refused.value.reason


def test_records_are_there_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path).close()
    store = Store(tmp_path, KEY)
    assert store.items("kind") == [(b"%d" % n, b"value %d" % n) for n in range(5)]
    assert store.get("kind", b"9") is None
    assert store.get("other", b"1") is None
    store.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)

    def fails_halfway() -> None:
        with store.transaction():
            store.put("kind", b"1", b"changed")
            store.delete("kind", b"2")
            assert (store.get("kind", b"1"), store.get("kind", b"2")) == (b"changed", None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_halfway()
    assert store.get("kind", b"1") == b"value 1"
    assert store.get("kind", b"2") == b"value 2"
    store.close()


def test_writing_outside_a_transaction_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(StoreError, match="transaction"):
        store.put("kind", b"1", b"x")
    store.close()


def test_defect_10_only_one_process_uses_a_state_and_the_other_is_told_which(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(StoreError, match=str(os.getpid())) as refused:
        Store(tmp_path, KEY)
    assert refused.value.reason == "state_locked"
    program = (
        "from pathlib import Path; from kars_sdk.mesh.store import Store; "
        f"Store(Path({str(tmp_path)!r}), {KEY!r})"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "one process at a time" in other.stderr
    store.close()
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    filled(tmp_path).close()
    assert reason_of_opening(tmp_path, bytes(32)) == "state_key_wrong"
    assert reason_of_opening(tmp_path, b"short") == "state_key_wrong"
    Store(tmp_path, KEY).close()


def test_names_and_values_are_not_on_disk_in_clear(tmp_path: Path) -> None:
    store = Store(tmp_path, KEY)
    with store.transaction():
        store.put("kind", b"canary-name", b"canary-value")
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"canary" not in data
    store.close()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    store = filled(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    for path in (tmp_path / "state").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    store.close()


def change(folder: Path, statement: str, *values: object) -> None:
    database = sqlite3.connect(folder / "state.db")
    with database:
        assert database.execute(statement, values).rowcount >= 1
    database.close()


def rows(folder: Path) -> list[tuple[str, bytes, int, bytes]]:
    database = sqlite3.connect(folder / "state.db")
    found = database.execute("SELECT kind, place, version, sealed FROM record").fetchall()
    database.close()
    return found


def test_a_record_that_was_changed_removed_swapped_or_added_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path).close()
    kind, place, version, sealed = rows(tmp_path)[0]
    _, other, _, other_sealed = rows(tmp_path)[1]
    attacks: list[tuple[str, tuple[object, ...]]] = [
        ("UPDATE record SET sealed = ? WHERE place = ?", (sealed[:-1] + bytes((sealed[-1] ^ 1,)), place)),
        ("UPDATE record SET sealed = ? WHERE place = ?", (other_sealed, place)),
        ("UPDATE record SET version = version + 1 WHERE place = ?", (place,)),
        ("UPDATE record SET kind = 'other' WHERE place = ?", (place,)),
        ("DELETE FROM record WHERE place = ?", (other,)),
        ("INSERT INTO record VALUES (?, ?, ?, ?)", (kind, bytes(16), version, sealed)),
        ("UPDATE head SET version = version + 1", ()),
    ]
    backup = (tmp_path / "state.db").read_bytes()
    for statement, values in attacks:
        change(tmp_path, statement, *values)
        assert reason_of_opening(tmp_path) in {"state_damaged", "state_key_wrong"}, statement
        for name in ("state.db-wal", "state.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "state.db").write_bytes(backup)
    Store(tmp_path, KEY).close()


def test_one_old_record_put_back_is_noticed(tmp_path: Path) -> None:
    store = filled(tmp_path)
    old = next(row for row in rows(tmp_path))
    with store.transaction():
        for number in range(5):
            store.put("kind", b"%d" % number, b"newer")
    store.close()
    change(tmp_path, "UPDATE record SET version = ?, sealed = ? WHERE place = ?", old[2], old[3], old[1])
    assert reason_of_opening(tmp_path) == "state_damaged"


def test_a_state_that_was_deleted_is_not_silently_begun_anew(tmp_path: Path) -> None:
    filled(tmp_path).close()
    for path in tmp_path.glob("state.db*"):
        path.unlink()
    assert reason_of_opening(tmp_path) == "state_rolled_back"


def test_an_anchor_kept_elsewhere_notices_a_folder_that_was_put_back(tmp_path: Path) -> None:
    folder, anchor = tmp_path / "state", tmp_path / "anchor"
    store = Store(folder, KEY, anchor=anchor)
    with store.transaction():
        store.put("kind", b"1", b"old")
    store.close()
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    store = Store(folder, KEY, anchor=anchor)
    with store.transaction():
        store.put("kind", b"1", b"new")
    store.close()
    for name, data in old.items():
        (folder / name).write_bytes(data)
    with pytest.raises(StoreError) as refused:
        Store(folder, KEY, anchor=anchor)
    assert refused.value.reason == "state_rolled_back"


def test_a_writer_behind_our_back_is_noticed_at_the_next_commit(tmp_path: Path) -> None:
    store = filled(tmp_path)
    change(tmp_path, "UPDATE head SET version = version + 1")
    with pytest.raises(StoreError) as refused, store.transaction():
        store.put("kind", b"1", b"x")
    assert refused.value.reason == "state_changed_elsewhere"
    store.close()


def test_a_disk_that_refuses_leaves_the_old_state_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    store._database.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError) as refused, store.transaction():
        store.put("kind", b"1", b"x")
    assert refused.value.reason == "state_not_written"
    store._database.execute("PRAGMA query_only = OFF")
    assert store.get("kind", b"1") == b"value 1"
    with store.transaction():
        store.put("kind", b"1", b"y")
    store.close()
    store = Store(tmp_path, KEY)
    assert store.get("kind", b"1") == b"y"
    store.close()
