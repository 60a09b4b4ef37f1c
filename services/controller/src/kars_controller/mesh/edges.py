"""Edges of a TrustGraph, judged one by one: which hold, which do not, and why not.

Pure. An edge counts only with the signature of its own `from` vertex, between two vertices that are
sandboxes, and only from `issuedAt` until `notAfter`. The graph's keys are trusted because only operators may
write a TrustGraph; the signatures keep one vertex from speaking for another.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars_common.spiffe import SpiffeId

from kars_controller.api_types import peers
from kars_controller.api_types.trust_graph import Edge, TrustGraphSpec, Vertex

GRAPH_NAMESPACE = "default"
"""The namespace of vertices that are named without one: TrustGraphs have none of their own."""

_CLOCK_SKEW_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshEdge:
    """`sender` may write to `recipient`, and trusts it with `score`. Times are Unix seconds."""

    sender: SpiffeId
    recipient: SpiffeId
    score: int
    not_before: int = 0
    not_after: int | None = None

    def holds(self, now_s: float) -> bool:
        """Tell whether the edge counts at this moment."""
        begun = now_s >= self.not_before - _CLOCK_SKEW_S
        return begun and (self.not_after is None or now_s < self.not_after)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphVerdict:
    """What one TrustGraph is worth, whatever the time."""

    valid_vertices: int
    edges: tuple[MeshEdge, ...]
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Reasons of rejected edges, with how many."""

    def holding(self, now_s: float) -> tuple[MeshEdge, ...]:
        """Return the edges that count now."""
        return tuple(edge for edge in self.edges if edge.holds(now_s))

    def next_change_s(self, now_s: float) -> float | None:
        """Return in how many seconds the next edge begins or ends; None when none will."""
        moments = [edge.not_before - _CLOCK_SKEW_S for edge in self.edges]
        moments += [edge.not_after for edge in self.edges if edge.not_after is not None]
        later = [moment - now_s for moment in moments if moment > now_s]
        return min(later, default=None)


def judge_graph(spec: TrustGraphSpec, trust_domain: str) -> GraphVerdict:
    """Verify every edge of a graph."""
    known = _vertices(spec.vertices, trust_domain)
    edges: list[MeshEdge] = []
    rejected: Counter[str] = Counter()
    for edge in spec.edges:
        found = _judge(edge, known)
        if isinstance(found, str):
            rejected[found] += 1
        else:
            edges.append(found)
    reasons = dict(sorted(rejected.items()))
    return GraphVerdict(valid_vertices=len(known), edges=tuple(edges), rejected=reasons)


def signed_bytes(edge: Edge) -> bytes:
    """Return what an edge's signature covers: one field a line."""
    ends = "" if edge.not_after is None else str(edge.not_after)
    fields = ("trustgraph.v1", edge.source, edge.target, str(edge.score), str(edge.issued_at), ends)
    return "".join(f"{text}\n" for text in fields).encode()


def _vertices(vertices: list[Vertex], trust_domain: str) -> dict[str, tuple[SpiffeId, Ed25519PublicKey]]:
    """Return the usable vertices; an id that is given twice is usable with neither of its keys."""
    counts = Counter(vertex.id for vertex in vertices)
    known = {}
    for vertex in vertices:
        identity = peers.parse(vertex.id, GRAPH_NAMESPACE, trust_domain)
        key = _key(vertex.public_key_b64u)
        if identity is not None and key is not None and counts[vertex.id] == 1:
            known[vertex.id] = (identity, key)
    return known


def _judge(edge: Edge, known: Mapping[str, tuple[SpiffeId, Ed25519PublicKey]]) -> MeshEdge | str:
    if edge.source not in known:
        return "unknown_from_vertex"
    if edge.target not in known:
        return "unknown_to_vertex"
    (sender, key), (recipient, _) = known[edge.source], known[edge.target]
    if sender == recipient:
        return "self_edge"
    return _signature_problem(edge, key) or MeshEdge(
        sender=sender,
        recipient=recipient,
        score=edge.score,
        not_before=edge.issued_at,
        not_after=edge.not_after,
    )


def _signature_problem(edge: Edge, key: Ed25519PublicKey) -> str:
    signature = _decode(edge.signature)
    if signature is None:
        return "signature_decode_error"
    if len(signature) != 64:
        return "signature_length_error"
    try:
        key.verify(signature, signed_bytes(edge))
    except InvalidSignature:
        return "signature_mismatch"
    return ""


def _key(text: str) -> Ed25519PublicKey | None:
    raw = _decode(text)
    return Ed25519PublicKey.from_public_bytes(raw) if raw is not None and len(raw) == 32 else None


def _decode(text: str) -> bytes | None:
    """Return what canonical base64url without padding stands for, or None."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == text else None
