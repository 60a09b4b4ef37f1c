"""What a real API server makes of our definitions, and that it stores what the local platform stores."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kars_controller import api_types, shipped, testing
from kars_controller.api_types import ALL_KINDS, Kind

from services.controller.tests.kubernetes import samples
from services.controller.tests.kubernetes.cluster import Cluster

ROOT = Path(__file__).parents[4]


def _valid() -> list[dict[str, Any]]:
    shown = [
        document
        for path in sorted((ROOT / "examples").rglob("*.yaml"))
        for document in yaml.safe_load_all(re.sub("@[A-Z]+@", "filled-in", path.read_text(encoding="utf-8")))
        if isinstance(document, dict) and document.get("apiVersion") == api_types.API_VERSION
    ]
    for document in shown:
        # The kars command makes the path of a folder absolute before it sends the manifest.
        runtime = document["spec"].get("runtime", {})
        for variant in (item for item in runtime.values() if isinstance(item, dict)):
            local = variant.get("agentCode", {}).get("local", {})
            local |= {name: f"/home/ann/{Path(path).name}" for name, path in local.items()}
    ours = [json.loads(json.dumps(document)) for document in shipped.documents()]
    return [*samples.full(), *samples.short(), *shown, *ours]


def _name(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


each_kind = pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.name)
each_valid = pytest.mark.parametrize("document", _valid(), ids=_name)


@each_valid
def test_both_platforms_accept_it_and_store_the_same_with_the_same_defaults(
    document: dict[str, Any], cluster: Cluster, namespace: str
) -> None:
    stored = cluster.store(document, namespace)
    assert stored["spec"] == api_types.validate(document).document["spec"]
    again = cluster.replace(stored)
    assert again["metadata"]["generation"] == stored["metadata"]["generation"] == 1
    assert again["spec"] == stored["spec"]
    cluster.delete(document, namespace)


@each_valid
def test_applying_it_a_second_time_changes_nothing(
    document: dict[str, Any], cluster: Cluster, namespace: str
) -> None:
    first, second = (cluster.apply(document, namespace, "somebody") for _ in range(2))
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    cluster.delete(document, namespace)


@each_kind
def test_a_status_goes_through_its_own_door_only(kind: Kind, cluster: Cluster, namespace: str) -> None:
    document = _sample(kind)
    stored = cluster.store({**document, "status": {"phase": "Ready"}}, namespace)
    assert "status" not in stored, "a status that comes with the spec is dropped"
    status = {"phase": _phase(kind), "observedGeneration": 1, "conditions": [_condition("Ready", "True")]}
    judged = cluster.replace({**stored, "status": status, "spec": {}}, "/status")
    assert judged["status"] == status
    assert (judged["spec"], judged["metadata"]["generation"]) == (stored["spec"], 1)
    kept = cluster.replace({**judged, "status": {}})
    assert kept["status"] == status, "an update of the resource leaves the status alone"
    cluster.delete(document, namespace)


@each_kind
def test_two_writers_of_conditions_keep_their_own(kind: Kind, cluster: Cluster, namespace: str) -> None:
    document = _sample(kind)
    cluster.store(document, namespace)
    for writer, type_ in (("controller", "Ready"), ("router", "MeshReady"), ("controller", "Ready")):
        part = {**document, "status": {"conditions": [_condition(type_, "False")]}}
        judged = cluster.apply({**part, "spec": None}, namespace, writer, "/status")
    assert [item["type"] for item in judged["status"]["conditions"]] == ["Ready", "MeshReady"]
    cluster.delete(document, namespace)


@each_kind
def test_a_status_that_no_tool_could_read_is_refused(kind: Kind, cluster: Cluster, namespace: str) -> None:
    document = _sample(kind)
    stored = cluster.store(document, namespace)
    bad = _condition("Ready", "Maybe")
    answer = cluster.replace({**stored, "status": {"conditions": [bad]}}, "/status")
    assert {cause["field"] for cause in answer["details"]["causes"]} >= {"status.conditions[0].status"}
    twice = [_condition("Ready", "True"), _condition("Ready", "False")]
    answer = cluster.replace({**stored, "status": {"conditions": twice}}, "/status")
    assert any(cause["reason"] == "FieldValueDuplicate" for cause in answer["details"]["causes"])
    cluster.delete(document, namespace)


@each_kind
def test_kubectl_shows_the_columns_and_knows_the_short_name_and_the_category(
    kind: Kind, cluster: Cluster, namespace: str
) -> None:
    document = _sample(kind)
    name = cluster.store(document, namespace)["metadata"]["name"]
    for alias in (*kind.short_names, kind.plural, kind.name.lower()):
        header, row = cluster.kubectl("get", alias, name, "-n", namespace, "-o", "wide").splitlines()
        assert header.split() == ["NAME", *(column.name.upper() for column in kind.columns)]
        assert row.startswith(name)
    assert f"{kind.plural}.kars.azure.com/{name}" in cluster.kubectl(
        "get", "kars", "-n", namespace, "-o", "name"
    ).replace(f"{kind.name.lower()}.kars", f"{kind.plural}.kars")
    cluster.delete(document, namespace)


@each_kind
def test_kubectl_explains_every_field(kind: Kind, cluster: Cluster) -> None:
    said = cluster.kubectl("explain", kind.plural, "--recursive")
    for name in _field_names(kind.spec.model_json_schema(by_alias=True)):
        assert f"{name}\t<" in said, said
    top = cluster.kubectl("explain", f"{kind.plural}.spec")
    assert " ".join((kind.spec.__doc__ or "").split()) in " ".join(top.split())


def test_explain_gives_enums_and_descriptions(cluster: Cluster) -> None:
    assert "How long it holds" in cluster.kubectl("explain", "eappr.spec.ttl")
    assert "enum: standard, enhanced, confidential" in cluster.kubectl("explain", "cs.spec.sandbox")


def test_names_are_refused_as_on_the_local_platform(cluster: Cluster, namespace: str) -> None:
    long = testing.sandbox("a" * 59)
    dotted = testing.sandbox("a.b")
    second = samples.cluster_wide("KarsAuthConfig", "second", _sample(api_types.find_kind("kac"))["spec"])
    for document in (long, dotted, second):
        with pytest.raises(Exception, match=r"metadata\.name"):
            api_types.validate(document)
        answer = cluster.create(document, namespace, dryRun="All")
        assert {cause["field"] for cause in answer["details"]["causes"]} >= {"metadata.name"}, answer
    assert cluster.create(testing.sandbox("a" * 58), namespace, dryRun="All")["kind"] == "KarsSandbox"


def test_kubectl_refuses_a_misspelt_field_by_default(cluster: Cluster, namespace: str) -> None:
    document = testing.sandbox(sandbox={"seccompProfil": "x"})
    said = cluster.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(_unplaced(document)))
    assert 'unknown field "spec.sandbox.seccompProfil"' in said


def test_a_decision_about_a_proposal_is_accepted_once(cluster: Cluster, namespace: str) -> None:
    proposal = cluster.store(testing.document("KarsSREAction", "decide", samples.PROPOSAL), namespace)
    proposal["spec"]["approval"] = {"state": "Approved", "note": "go"}
    approved = cluster.replace(proposal)
    assert approved["spec"]["approval"]["state"] == "Approved"
    withdrawn = copy.deepcopy(approved)
    withdrawn["spec"]["approval"]["state"] = "Pending"
    assert cluster.replace(withdrawn)["reason"] == "Invalid"


def _sample(kind: Kind) -> dict[str, Any]:
    return next(document for document in samples.full() if document["kind"] == kind.name)


def _unplaced(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "metadata": {"name": document["metadata"]["name"]}}


def _phase(kind: Kind) -> str:
    return {"KarsSandbox": "Running", "KarsPairing": "Active", "KarsSREAction": "Applied"}.get(
        kind.name, "Ready"
    )


def _condition(type_: str, status: str) -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": "Reconciled",
        "message": "",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
        "observedGeneration": 1,
    }


def _field_names(schema: dict[str, Any]) -> set[str]:
    objects = [schema, *schema.get("$defs", {}).values()]
    return {name for item in objects for name in item.get("properties", {})}
