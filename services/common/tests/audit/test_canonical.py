"""Records are RFC 8785, and nothing outside their domain gets in."""

import enum
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from kars_common.audit import canonical
from kars_common.errors import InvalidInputError

KEYS = st.text(st.characters(max_codepoint=127), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-canonical.MAX_INT, canonical.MAX_INT)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.dictionaries(KEYS, VALUES, max_size=8)


@given(RECORDS)
def test_encoding_is_rfc_8785_over_the_whole_domain(record: dict[str, Any]) -> None:
    line = canonical.encode(canonical.normalise(record))
    assert line == rfc8785.dumps(record)
    assert b"\n" not in line
    assert canonical.decode(line) == record


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [1.5, 2.0, float("nan"), b"bytes", {1: "x"}, {"ключ": 1}, object(), {1, 2}, [[[[[[[[[1]]]]]]]]],
     [0.1], {"a": {"b": 1.0}}],
)  # fmt: skip
def test_values_outside_the_domain_are_refused_by_field_name(value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        canonical.normalise({"suspect": value})
    assert caught.value.reason == "audit_field_invalid"
    assert "suspect" in caught.value.message


@pytest.mark.parametrize("value", [2**53, -(2**53), 2**64, 10**30])
def test_integers_that_other_readers_would_round_are_refused(value: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        canonical.encode(canonical.normalise({"n": value}))
    assert caught.value.reason == "audit_field_invalid"


def test_string_enums_are_their_value() -> None:
    assert (
        canonical.encode(canonical.normalise({"c": Colour.RED, "l": (Colour.RED, 1)}))
        == b'{"c":"red","l":["red",1]}'
    )


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"1", b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1,"a":1}', b'{"a":1.0}', b'{"a":"\\u0041"}',
     b'{"a":1}x', b'{"a":9007199254740993}', b'{"a":"\xff"}'],
)  # fmt: skip
def test_lines_in_any_other_form_are_refused(line: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        canonical.decode(line)
    assert caught.value.reason in {"audit_record_malformed", "audit_record_not_canonical"}
