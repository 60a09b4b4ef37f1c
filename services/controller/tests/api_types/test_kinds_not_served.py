"""Kinds whose schema is known and that nothing would enforce are refused, and it is said what to do."""

import re
from pathlib import Path

import pytest
from kars_common.errors import InvalidInputError
from kars_controller import api_types

from services.controller.tests.kubernetes import samples

PLANNED = tuple(kind for kind in api_types.ALL_KINDS if kind.not_served)


def test_the_twelve_kinds_are_known_and_six_are_served() -> None:
    assert len(api_types.ALL_KINDS) == 12
    assert {kind.name for kind in api_types.KINDS} == {
        "KarsSandbox",
        "InferencePolicy",
        "ToolPolicy",
        "TrustGraph",
        "KarsAuthConfig",
        "KarsPairing",
    }


@pytest.mark.parametrize("kind", PLANNED, ids=lambda kind: kind.name)
def test_a_valid_manifest_that_nothing_would_enforce_is_refused(kind: api_types.Kind) -> None:
    document = next(item for item in samples.full() if item["kind"] == kind.name)
    assert api_types.validate(document).kind is kind
    with pytest.raises(InvalidInputError) as caught:
        api_types.admit(document)
    assert caught.value.reason == "kind_not_served"
    assert kind.name in caught.value.message
    assert kind.not_served in caught.value.message
    assert "served: KarsSandbox (cs)" in caught.value.message


@pytest.mark.parametrize("kind", PLANNED, ids=lambda kind: kind.name)
def test_its_names_say_the_same_to_who_lists_it(kind: api_types.Kind) -> None:
    for alias in (kind.name, kind.plural, *kind.short_names):
        with pytest.raises(InvalidInputError) as caught:
            api_types.find_kind(alias)
        assert caught.value.reason == "kind_not_served"


def test_a_kind_that_does_not_exist_is_unknown() -> None:
    with pytest.raises(InvalidInputError) as caught:
        api_types.find_kind("KarsSandbx")
    assert caught.value.reason == "kind_unknown"
    assert "did you mean karssandbox?" in caught.value.message


def test_the_page_about_compatibility_says_the_same() -> None:
    text = (Path(__file__).parents[4] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.endswith("| schema only |")]
    refused = {name for row in rows if "kind_not_served" in row for name in re.findall(r"`(\w+)`", row)}
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert refused - {"kind_not_served"} == {kind.name for kind in PLANNED}
    assert named >= {kind.name for kind in api_types.ALL_KINDS}
