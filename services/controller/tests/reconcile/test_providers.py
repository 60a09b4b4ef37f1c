"""Each router gets the keys of its own providers; what is wrong with the file is said, never guessed."""

import json
from pathlib import Path

import pytest
from kars_controller import providers


def write(path: Path, document: object) -> Path:
    file = path / "providers.json"
    file.write_text(json.dumps(document))
    return file


def test_only_wanted_keys_are_shared_under_names_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "one.key").write_text("first")
    (tmp_path / "two.key").write_text("second")
    entries = [
        {"name": "one", "baseUrl": "http://a/v1", "auth": {"keyFile": "one.key"}},
        {"name": "two", "baseUrl": "http://b/v1", "auth": {"keyFile": "two.key"}},
        {"name": "open", "baseUrl": "http://c/v1"},
    ]
    share = providers.read(write(tmp_path, {"providers": entries})).share(["two", "open", "missing"])
    assert share.unknown == ("missing",)
    assert {path for path in share.files if path != "providers.json"} == {"secrets/0.key"}
    assert share.files["secrets/0.key"] == b"second"
    written = json.loads(share.files["providers.json"])
    assert [entry["name"] for entry in written["providers"]] == ["two", "open"]
    assert b"first" not in b"".join(share.files.values())
    assert "second" not in repr(share)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"providers": {}},
        {"providers": [{}]},
        {"providers": [1]},
        {"providers": [{"name": "a", "auth": {"keyFile": "no"}}]},
    ],
)
def test_a_broken_file_has_no_providers_and_says_why(tmp_path: Path, document: object) -> None:
    found = providers.read(write(tmp_path, document))
    assert found.problem or not found.entries
    assert found.share(["a"]).unknown == ("a",)


def test_an_absent_file_is_a_problem(tmp_path: Path) -> None:
    assert "cannot read" in providers.read(tmp_path / "none.json").problem
