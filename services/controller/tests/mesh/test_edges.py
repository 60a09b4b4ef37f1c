"""Edges of a TrustGraph: what counts, what does not, and that nobody signs for another."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_common.spiffe import SpiffeId
from kars_controller import api_types, testing
from kars_controller.api_types.trust_graph import TrustGraphSpec
from kars_controller.mesh import MeshEdge, judge_graph

WRITER, READER = testing.Vertex("team/writer"), testing.Vertex("a2a-agent/team/reader")
NOW = 1_800_000_000


def spec(
    edges: list[dict[str, Any]], vertices: tuple[testing.Vertex, ...] = (WRITER, READER)
) -> TrustGraphSpec:
    found = api_types.parse_spec(api_types.admit(testing.trust_graph(vertices, edges)).document)
    assert isinstance(found, TrustGraphSpec)
    return found


def rejected(edge: dict[str, Any]) -> dict[str, int]:
    return dict(judge_graph(spec([edge]), "kars.local").rejected)


def test_a_signed_edge_becomes_a_permission_between_two_names() -> None:
    verdict = judge_graph(spec([WRITER.trusts(READER.name, score=812)]), "kars.local")
    (edge,) = verdict.holding(NOW)
    assert edge.sender == SpiffeId.sandbox("kars.local", "team", "writer")
    assert edge.recipient == SpiffeId.sandbox("kars.local", "team", "reader")
    assert (edge.score, verdict.rejected, verdict.valid_vertices) == (812, {}, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"from": "team/nobody"}, "unknown_from_vertex"),
        ({"to": "team/nobody"}, "unknown_to_vertex"),
        ({"to": "team/writer"}, "self_edge"),
        ({"score": 801}, "signature_mismatch"),
        ({"issuedAt": 1_700_000_001}, "signature_mismatch"),
        ({"notAfter": 1_900_000_000}, "signature_mismatch"),
        ({"from": "a2a-agent/team/reader", "to": "team/writer"}, "signature_mismatch"),
        ({"signature": "AAAA"}, "signature_length_error"),
        ({"signature": "?" * 86}, "signature_decode_error"),
        ({"signature": "A" * 86 + "=="}, "signature_decode_error"),
    ],
)
def test_an_edge_that_was_changed_after_it_was_signed_is_rejected_by_reason(
    change: dict[str, Any], reason: str
) -> None:
    assert rejected({**WRITER.trusts(READER.name), **change}) == {reason: 1}


def test_a_vertex_that_is_listed_twice_speaks_with_neither_key() -> None:
    impostor = testing.Vertex(WRITER.name)
    graph = spec([WRITER.trusts(READER.name), impostor.trusts(READER.name)], (WRITER, impostor, READER))
    assert judge_graph(graph, "kars.local").rejected == {"unknown_from_vertex": 2}


def test_an_edge_counts_from_its_beginning_until_its_end() -> None:
    verdict = judge_graph(
        spec([WRITER.trusts(READER.name, issued_at=NOW, not_after=NOW + 100)]), "kars.local"
    )
    assert verdict.holding(NOW - 61) == ()
    assert len(verdict.holding(NOW)) == len(verdict.holding(NOW + 99)) == 1
    assert verdict.holding(NOW + 100) == ()
    assert verdict.next_change_s(NOW) == 100
    assert verdict.next_change_s(NOW + 100) is None


def test_a_name_without_a_namespace_is_one_sandbox_and_no_other() -> None:
    plain = testing.Vertex("writer")
    (edge,) = judge_graph(spec([plain.trusts(READER.name)], (plain, READER)), "kars.local").edges
    assert edge.sender == SpiffeId.sandbox("kars.local", "default", "writer")


@pytest.mark.parametrize(
    "name", ["spiffe://kars.local/svc/relay", "spiffe://kars.local/operator/ann", "a/b/c"]
)
def test_what_is_no_sandbox_is_no_vertex(name: str) -> None:
    odd = testing.Vertex(name)
    assert judge_graph(spec([odd.trusts(READER.name)], (odd, READER)), "kars.local").valid_vertices == 1


@given(bits=st.integers(min_value=0, max_value=511))
def test_no_bit_of_a_signature_is_idle(bits: int) -> None:
    edge = WRITER.trusts(READER.name)
    from base64 import urlsafe_b64decode

    raw = bytearray(urlsafe_b64decode(edge["signature"] + "=="))
    raw[bits // 8] ^= 1 << bits % 8
    assert rejected({**edge, "signature": testing.b64u(bytes(raw))}) == {"signature_mismatch": 1}


def test_edges_without_an_end_never_end() -> None:
    edge = MeshEdge(
        sender=SpiffeId.sandbox("kars.local", "a", "b"),
        recipient=SpiffeId.sandbox("kars.local", "a", "c"),
        score=1,
    )
    assert edge.holds(1e12)
    assert not replace(edge, not_after=5).holds(5)
