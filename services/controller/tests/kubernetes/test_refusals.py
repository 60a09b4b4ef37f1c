"""One table, two platforms: what the local platform refuses, an API server with our schemas refuses too.

The first table is derived: each limit that a schema states is broken once. The second breaks each rule.
"""

import functools
import re
from typing import Any

import pytest
from kars_common.errors import InvalidInputError
from kars_controller import api_types
from kars_controller.crds import definitions

from services.controller.tests.kubernetes import broken, rules, samples
from services.controller.tests.kubernetes.broken import Broken
from services.controller.tests.kubernetes.cluster import Cluster
from services.controller.tests.kubernetes.rules import BrokenRule

SPECS: dict[str, dict[str, Any]] = {
    kind.name: definitions.of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for kind in api_types.ALL_KINDS
}


@functools.cache
def limits() -> tuple[Broken, ...]:
    """Return one broken manifest for each kind, field and limit."""
    found: dict[tuple[str, str, str], Broken] = {}
    for document in samples.full():
        for case in broken.every_limit(document, SPECS[document["kind"]]):
            found.setdefault((document["kind"], case.field, case.limit), case)
    return tuple(found.values())


def _name(case: Broken | BrokenRule) -> str:
    what = case.limit if isinstance(case, Broken) else case.message[:30]
    return f"{case.document['kind']}-{case.field}-{what}"


each_limit = pytest.mark.parametrize("case", limits(), ids=_name)
each_rule = pytest.mark.parametrize("case", list(rules.every_rule()), ids=_name)


def locally_refused(case: Broken | BrokenRule) -> dict[str, str]:
    """Return what the local platform says to a manifest, by field."""
    before = None
    for stored in getattr(case, "stored", ()):
        admitted = api_types.validate(stored)
        api_types.check_change(admitted, before)
        before = admitted.document
    with pytest.raises(InvalidInputError) as caught:
        api_types.check_change(api_types.validate(case.document), before)
    assert caught.value.reason == "schema_invalid"
    return {violation.field: violation.description for violation in caught.value.violations}


@each_limit
def test_the_local_platform_refuses_what_is_beyond_a_limit(case: Broken) -> None:
    if (case.field, case.limit) == ("spec.networkPolicy.allowedEndpoints[0]", "type"):
        endpoints = api_types.validate(case.document).document["spec"]["networkPolicy"]["allowedEndpoints"]
        assert endpoints == [{"host": "text", "port": 443}], "a bare host is a short form here"
    else:
        assert case.field in locally_refused(case)


@each_limit
def test_an_api_server_refuses_what_is_beyond_a_limit(case: Broken, cluster: Cluster, namespace: str) -> None:
    answer = cluster.create(case.document, namespace, dryRun="All")
    if case.limit == "unknown":
        assert answer["reason"] == "BadRequest"
        assert f'unknown field "{case.field}"' in answer["message"]
    else:
        assert answer["reason"] == "Invalid", answer
        fields = {cause["field"] for cause in answer["details"]["causes"]}
        # For `not`, an API server says the field in its words only.
        assert case.field in fields or f'"{case.field}" must not' in answer["message"], answer


@each_rule
def test_the_local_platform_refuses_what_breaks_a_rule(case: BrokenRule) -> None:
    # Where the local platform has better words it may also name the exact place inside the field.
    assert any(re.match(rf"{re.escape(case.field)}($|[.\[])", field) for field in locally_refused(case))


@each_rule
def test_an_api_server_refuses_what_breaks_a_rule_in_its_words(
    case: BrokenRule, cluster: Cluster, namespace: str
) -> None:
    if case.stored:
        answer = cluster.store(case.stored[0], namespace)
        for document in (*case.stored[1:], case.document):
            answer = cluster.replace({**answer, "spec": document["spec"]})
    else:
        answer = cluster.create(case.document, namespace, dryRun="All")
    assert answer["reason"] == "Invalid", answer
    said = {cause["field"]: cause["message"] for cause in answer["details"]["causes"]}
    assert case.message in said.get(case.field, ""), answer


def test_every_limit_of_every_field_is_broken_by_a_case() -> None:
    wanted = {
        (kind, field, limit) for kind, schema in SPECS.items() for field, limit in _stated(schema, kind)
    }
    covered = {(case.document["kind"], re.sub(r"\[\d+\]", "[]", case.field), case.limit) for case in limits()}
    # A map's key stands where the schema has one name for all.
    maps = {(kind, _with_keys_as_places(field, SPECS[kind]), limit) for kind, field, limit in covered}
    assert wanted - maps == set()


def test_every_rule_of_every_kind_is_broken_by_a_case() -> None:
    wanted = {
        (kind, field, message)
        for kind, schema in SPECS.items()
        for field, message in rules.declared(schema["properties"]["spec"])
    }
    covered = {
        (case.document["kind"], re.sub(r"\[\d+\]", "[]", case.field), case.message)
        for case in rules.every_rule()
    }
    assert wanted == covered


def _stated(schema: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    """Return what a schema states; bounds on lists too long to send once are proved by the API server."""
    too_long = {("spec.vertices", "maxItems"), ("spec.edges", "maxItems")} if kind == "TrustGraph" else set()
    return [pair for pair in broken.limits_of(schema["properties"]["spec"]) if pair not in too_long]


def _with_keys_as_places(field: str, schema: dict[str, Any]) -> str:
    shown, here = "spec", schema["properties"]["spec"]
    for step in re.findall(r"\.[^.\[]+|\[\]", field.removeprefix("spec")):
        name = step.removeprefix(".")
        if step == "[]":
            shown, here = f"{shown}[]", here["items"]
        elif name in here.get("properties", {}):
            shown, here = f"{shown}.{name}", here["properties"][name]
        else:
            shown, here = f"{shown}[]", here.get("additionalProperties", {})
    return shown
