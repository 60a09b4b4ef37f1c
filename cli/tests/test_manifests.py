"""Manifests: many documents, lines of fields, bounds, folders of agent code."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_cli import manifests, yaml_nodes
from kars_common.errors import InvalidInputError

_PRINTABLE = st.characters(min_codepoint=32, max_codepoint=126)


def test_lines_of_fields_reach_into_lists_and_policy_text() -> None:
    text = (
        "spec:\n  list:\n    - a: 1\n    - b: 2\n"
        "  inline: |\n    version: x\n    policies:\n      - name: y\n"
    )
    [(document, lines)] = yaml_nodes.load_all(text)
    assert document["spec"]["list"] == [{"a": 1}, {"b": 2}]
    assert lines["spec.list[1].b"] == 4
    assert lines["spec.inline.policies[0].name"] == 8


def test_place_of_a_missing_field_is_its_closest_parent(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: A\nspec:\n  x: 1\n")
    [manifest] = manifests.read([tmp_path / "a.yaml"])
    assert manifest.place("spec.y.z[0]").endswith("a.yaml:2 spec.y.z[0]")
    assert manifest.place("metadata").endswith("a.yaml:1 metadata")


def test_folders_of_code_are_named_relative_to_the_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        "kind: KarsSandbox\n"
        "spec: {runtime: {pydanticAi: {agentCode: {local: {path: ../code, workspace: /w}}}}}\n"
    )
    [manifest] = manifests.read([folder])
    local = manifest.document["spec"]["runtime"]["pydanticAi"]["agentCode"]["local"]
    assert local == {"path": str(tmp_path / "code"), "workspace": "/w"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2\n", 2),
        ("a: !!python/object:os.system {}\n", 1),
        ("a: [\n", 2),
        ("? [a, b]\n: 1\n", 1),
        ("x: &a [1]\ny: *b\n", 2),
        ("a: !secret x\n", 1),
    ],
)
def test_hostile_or_broken_yaml_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(yaml_nodes.YamlError) as caught:
        list(yaml_nodes.load_all(text))
    assert caught.value.line == line


def test_small_file_of_aliases_cannot_grow_large() -> None:
    layers = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"l{number}: &l{number} [{', '.join([f'*l{number - 1}'] * 10)}]" for number in range(1, 9)]
    with pytest.raises(yaml_nodes.YamlError, match="more than"):
        list(yaml_nodes.load_all("\n".join(layers)))


def test_deep_nesting_is_refused_without_a_crash() -> None:
    with pytest.raises(yaml_nodes.YamlError):
        list(yaml_nodes.load_all("[" * 2000))


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    with suppress(yaml_nodes.YamlError):
        list(yaml_nodes.load_all(text))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(_PRINTABLE),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_json_is_read_as_what_it_says(value: object) -> None:
    [(document, _)] = yaml_nodes.load_all(json.dumps({"value": value}))
    assert document == {"value": value}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "manifest_empty"),
        (b"\xff\xfe", "manifest_malformed"),
        (b"just text", "manifest_malformed"),
        (b"a: " + b"x" * (1024 * 1024), "manifest_too_large"),
    ],
)
def test_unusable_files_are_refused_by_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        manifests.read([tmp_path / "a.yaml"])
    assert caught.value.reason == reason
