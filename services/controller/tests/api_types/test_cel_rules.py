"""Rules in CEL on the local platform: where they are asked, whom they blame, what if they cannot be."""

import contextlib
import copy
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kars_common.errors import InvalidInputError
from kars_controller import api_types, testing
from kars_controller.administration import Administration
from kars_controller.api_types import cel_rules
from kars_controller.api_types.base import ApiModel, Violation
from kars_controller.api_types.published import CelRule, immutable
from kars_controller.resources import ResourceStore
from kars_controller.storage import Database
from pydantic import Field

from services.controller.tests.kubernetes import samples

SAMPLES = samples.full()
POSITIVE = CelRule("!has(self.size) || self.size > 0", "allowed: above 0", ".size")


class Part(ApiModel):
    size: int | None = None

    cel: ClassVar[tuple[CelRule, ...]] = (POSITIVE,)


class Whole(ApiModel):
    one: Part | None = None
    many: list[Part] = Field(default_factory=list)
    named: dict[str, Part] = Field(default_factory=dict)
    nested: dict[str, list[Part]] | None = None


class Sealed(ApiModel):
    text: str
    state: str = "new"

    cel: ClassVar[tuple[CelRule, ...]] = (
        immutable("cannot be changed"),
        CelRule("oldSelf.hasValue() || self.state == 'new'", "begins as new", ".state", on_create=True),
    )


def broken(model: type[ApiModel], value: dict[str, Any]) -> list[Violation]:
    return list(cel_rules.violations(model, value))


def test_a_rule_is_asked_wherever_its_object_stands() -> None:
    bad, good = {"size": 0}, {"size": 1}
    value = {"one": bad, "many": [good, bad], "named": {"x": good, "y": bad}, "nested": {"z": [good, bad]}}
    assert [item.field for item in broken(Whole, value)] == [
        "spec.one.size",
        "spec.many[1].size",
        "spec.named.y.size",
        "spec.nested.z[1].size",
    ]
    assert {item.description for item in broken(Whole, value)} == {"allowed: above 0"}


def test_what_is_not_given_is_not_asked_about() -> None:
    assert broken(Whole, {}) == []
    assert broken(Whole, {"one": {}, "many": [{}]}) == []


def test_a_change_is_compared_and_a_creation_is_not() -> None:
    stored = {"text": "a", "state": "new"}
    assert list(cel_rules.transitions(Sealed, stored, None)) == []
    assert list(cel_rules.transitions(Sealed, stored, stored)) == []
    changed = list(cel_rules.transitions(Sealed, {**stored, "text": "b"}, stored))
    assert changed == [Violation("spec", "cannot be changed")]


def test_a_rule_about_creation_is_asked_on_creation_only() -> None:
    begun = {"text": "a", "state": "done"}
    assert list(cel_rules.transitions(Sealed, begun, None)) == [Violation("spec.state", "begins as new")]
    assert list(cel_rules.transitions(Sealed, begun, begun)) == []


def test_what_a_rule_cannot_be_evaluated_on_is_refused() -> None:
    class Text(ApiModel):
        text: str

        cel: ClassVar[tuple[CelRule, ...]] = (CelRule("self.text != 'x'", "not x", ".text"),)

    lone_surrogate = "\ud800"
    assert broken(Text, {"text": lone_surrogate}) == [
        Violation("spec.text", "a rule cannot be evaluated on it: not x")
    ]


def test_a_rule_that_says_no_boolean_does_not_hold() -> None:
    class Odd(ApiModel):
        text: str

        cel: ClassVar[tuple[CelRule, ...]] = (CelRule("self.text", "is odd"),)

    assert broken(Odd, {"text": "yes"}) == [Violation("spec", "is odd")]


async def test_an_operator_cannot_change_what_a_kind_seals(tmp_path: Any, monkeypatch: Any) -> None:
    """The store's way in asks transition rules, whatever kinds are served."""
    database = Database(tmp_path / "resources.db")
    kind = api_types.kind_named("ToolPolicy")
    assert kind is not None
    monkeypatch.setattr(kind.spec, "cel", (*kind.spec.cel, immutable("is sealed")))
    administration = Administration(ResourceStore(database), _NoAudit())  # type: ignore[arg-type]  # a stand-in
    await administration.apply(testing.tool_policy(), _OPERATOR, dry_run=False)
    await administration.apply(testing.tool_policy(), _OPERATOR, dry_run=False)
    for dry_run in (True, False):
        with pytest.raises(InvalidInputError, match="spec: is sealed") as caught:
            await administration.apply(testing.tool_policy(displayName="x"), _OPERATOR, dry_run=dry_run)
        assert caught.value.reason == "schema_invalid"
    database.close()


class _NoAudit:
    failed = False

    def append(self, _event: str, _fields: dict[str, Any]) -> int:
        return 1

    async def durable(self, _sequence: int) -> None:
        return None


_OPERATOR: Any = "spiffe://kars.local/operator/ann"

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_KINDS = st.sampled_from(api_types.ALL_KINDS)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=_KINDS, value=_JSON)
def test_no_value_in_any_field_of_any_kind_breaks_the_validator(data: Any, kind: Any, value: Any) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from([one for one in SAMPLES if one["kind"] == kind.name])))
    names = [info.alias for info in kind.spec.model_fields.values()]
    document["spec"][data.draw(st.sampled_from(names))] = value
    with contextlib.suppress(InvalidInputError):
        admitted = api_types.validate(document)
        assert api_types.validate(admitted.document).document == admitted.document
