"""Rotation of the statement keys: published before they sign, believed until what they signed has ended."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from kars_common.errors import FailedPreconditionError
from kars_controller import testing
from kars_controller.mesh import StatementKeys
from kars_controller.mesh.statement_keys import ANNOUNCED_FOR, STATEMENT_LIFETIME

MONTH = timedelta(days=30)


def keys(path: Path, clock: testing.Clock) -> StatementKeys:
    return StatementKeys(path / "keys.json", "kars.local", MONTH, clock)


def names(found: StatementKeys) -> list[str]:
    return [message.key_id for message in found.messages()]


def test_keys_survive_a_restart_and_are_nobody_elses_to_read(tmp_path: Path) -> None:
    clock = testing.Clock()
    first = keys(tmp_path, clock)
    assert names(keys(tmp_path, clock)) == names(first)
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


def test_a_new_key_is_announced_before_it_signs_and_the_old_one_outlives_its_statements(
    tmp_path: Path,
) -> None:
    clock = testing.Clock()
    found = keys(tmp_path, clock)
    old = found.signing().key_id
    assert not found.tend()
    clock.advance(MONTH.total_seconds())
    assert found.tend()
    assert len(names(found)) == 2
    assert found.signing().key_id == old
    clock.advance(ANNOUNCED_FOR.total_seconds())
    new = found.signing().key_id
    assert new != old
    clock.advance(STATEMENT_LIFETIME.total_seconds() - 1)
    assert not found.tend()
    assert old in names(found)
    clock.advance(1)
    assert found.tend()
    assert names(found) == [new]
    assert names(keys(tmp_path, clock)) == [new]


def test_a_clock_that_was_set_back_leaves_a_key(tmp_path: Path) -> None:
    clock = testing.Clock()
    found = keys(tmp_path, clock)
    clock.advance(-1e6)
    assert found.signing().key_id in names(found)


def test_the_trust_file_holds_public_keys_and_nothing_else(tmp_path: Path) -> None:
    found = keys(tmp_path, testing.Clock())
    (entry,) = json.loads(found.trust_file())["keys"]
    assert entry == {
        "keyId": found.signing().key_id,
        "publicKey": testing.b64u(found.signing().public_bytes),
        "trustDomain": "kars.local",
    }


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"privateKey": "AA=="}]', "[1]"])
def test_a_damaged_file_stops_the_controller_instead_of_making_a_new_identity(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(FailedPreconditionError) as refusal:
        keys(tmp_path, testing.Clock())
    assert refusal.value.reason == "key_damaged"
