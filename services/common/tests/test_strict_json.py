"""JSON of strangers: one meaning or none."""

# ruff: noqa: PT017  # property tests: an error with its reason, or a result; both are right

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_common import strict_json
from kars_common.errors import InvalidInputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read_back(value: Any) -> None:
    assert strict_json.parse(json.dumps(value).encode(), max_depth=64) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_reason(raw: bytes) -> None:
    try:
        value = strict_json.parse(raw, max_depth=8)
    except InvalidInputError as error:
        assert error.reason in ("invalid_utf8", "invalid_json", "too_deep", "duplicate_key")
    else:
        assert json.loads(raw) == value or value != value


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"a":{"b":1,"b":1}}', "duplicate_key"),
        (b'{"a":1,"\\u0061":2}', "duplicate_key"),
        (b'[{"x":":"},{"y":1,"y":":"}]', "duplicate_key"),
        (b"[" * 100 + b"]" * 100, "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b"\xff", "invalid_utf8"),
        (b"nan", "invalid_json"),
        (b"", "invalid_json"),
    ],
)
def test_what_is_ambiguous_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        strict_json.parse(raw, max_depth=64)
    assert refusal.value.reason == reason
