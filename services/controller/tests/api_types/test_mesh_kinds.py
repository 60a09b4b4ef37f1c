"""The mesh's kinds and the mesh fields of KarsSandbox: what is refused, and how it is said."""

import copy
from typing import Any

import pytest
from kars_common.errors import InvalidInputError
from kars_controller import api_types, testing

A, B = testing.Vertex("a"), testing.Vertex("b")
AUTH: dict[str, Any] = {
    "tenant": {"tenantId": "t"},
    "agentId": {"blueprintClientId": "c", "blueprintObjectId": "o"},
    "controller": {"managedIdentityClientId": "m", "managedIdentityResourceId": "r"},
}
PAIRING = {"tokenHash": "0f" * 32, "expiresAt": "2027-01-31T12:00:00Z"}


def graph(**changes: Any) -> dict[str, Any]:
    found = testing.trust_graph((A, B), [A.trusts("b")])
    found["spec"] = copy.deepcopy(found["spec"]) | changes
    return found


def auth(name: str = "default", **changes: Any) -> dict[str, Any]:
    found = testing.document("KarsAuthConfig", name, {**AUTH, **changes})
    del found["metadata"]["namespace"]
    return found


def pairing(**changes: Any) -> dict[str, Any]:
    return testing.document("KarsPairing", "laptop", {**PAIRING, **changes}, "kars-system")


def refusal(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidInputError) as caught:
        api_types.admit(document)
    return {violation.field: violation.description for violation in caught.value.violations}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (graph(vertices=[]), "spec.vertices"),
        (graph(vertices=[{**A.document(), "alg": "ES256"}]), "spec.vertices[0].alg"),
        (graph(vertices=[{**A.document(), "id": "a\nb"}]), "spec.vertices[0].id"),
        (graph(vertices=[{**A.document(), "key": "x"}]), "spec.vertices[0].key"),
        (graph(edges=[{**A.trusts("b"), "score": 1001}]), "spec.edges[0].score"),
        (graph(edges=[{**A.trusts("b"), "issuedAt": "now"}]), "spec.edges[0].issuedAt"),
        (graph(edges=[{**A.trusts("b"), "notAfter": 5}]), "spec.edges[0].notAfter"),
        (graph(edges=[{"from": "a", "to": "b"}]), "spec.edges[0].signature"),
        (auth("other"), "metadata.name"),
        (auth(meshAuthBackend="Entra"), "spec.meshAuthBackend"),
        (auth(meshAuthAudience="api://x"), "spec.meshAuthAudience"),
        (auth(tenant={"tenantId": "t", "authorityHost": "http://x"}), "spec.tenant.authorityHost"),
        (auth(agentId={"blueprintClientId": "c"}), "spec.agentId.blueprintObjectId"),
        (
            auth(downstreamApis={"Graph": {"baseUrl": "https://g", "scopes": []}}),
            "spec.downstreamApis.Graph.scopes",
        ),
        (pairing(tokenHash="F" * 64), "spec.tokenHash"),
        (pairing(tokenHash="secret"), "spec.tokenHash"),
        (pairing(expiresAt="soon"), "spec.expiresAt"),
        (pairing(expiresAt="2027-01-31T12:00:00"), "spec.expiresAt"),
        (pairing(slotsMax=0), "spec.slotsMax"),
        (pairing(tokenBudget=-1), "spec.tokenBudget"),
        (pairing(capabilities=["offload", "everything"]), "spec.capabilities[1]"),
        (pairing(isolation="none"), "spec.isolation"),
        (testing.sandbox(governance={"trustedPeers": "a,b c"}), "spec.governance.trustedPeers"),
        (testing.sandbox(governance={"trustedPeers": "a\x07"}), "spec.governance.trustedPeers"),
        (
            testing.sandbox(governance={"trustedPeers": "spiffe://x/svc/relay"}),
            "spec.governance.trustedPeers",
        ),
        (testing.sandbox(governance={"registryMode": "world"}), "spec.governance.registryMode"),
        (testing.sandbox(meshAuth={"mode": "none"}), "spec.meshAuth.mode"),
        (testing.sandbox(meshAuth={"kind": "auto"}), "spec.meshAuth.kind"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(document: dict[str, Any], field: str) -> None:
    assert field in refusal(document)


def test_defaults_are_those_of_the_schema() -> None:
    spec = api_types.admit(pairing()).document["spec"]
    assert (spec["slotsMax"], spec["tokenBudget"], spec["capabilities"]) == (
        1,
        500_000,
        ["offload", "handoff"],
    )
    assert api_types.admit(auth()).document["spec"]["meshAuthBackend"] == "Anonymous"
    assert api_types.admit(testing.sandbox(meshAuth={})).document["spec"]["meshAuth"]["mode"] == "auto"


def test_the_namespace_of_services_is_theirs() -> None:
    document = testing.sandbox("relay")
    document["metadata"]["namespace"] = "svc"
    assert "services own it" in refusal(document)["metadata.namespace"]


@pytest.mark.parametrize(
    ("given", "meant"), [("tg", "TrustGraph"), ("kac", "KarsAuthConfig"), ("cp", "KarsPairing")]
)
def test_short_names_are_known(given: str, meant: str) -> None:
    assert api_types.find_kind(given).name == meant


def test_a_foreign_mesh_id_beside_a_name_is_said_to_have_no_effect() -> None:
    admitted = api_types.admit(testing.sandbox(governance={"enabled": False, "trustedPeers": "parent:did-x"}))
    assert any("trustedPeers" in warning for warning in admitted.warnings)
