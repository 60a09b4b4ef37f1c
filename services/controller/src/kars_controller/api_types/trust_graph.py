"""TrustGraph: who trusts whom in the mesh, signed edge by edge. Cluster-wide.

The schema says what an edge looks like. Whether its signature fits and whether it holds now is judged where
the edges are compiled, so that one bad edge is reported and left out, and not the whole graph.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from kars_controller.api_types.base import AGE, MAX_INT64, PHASE, ApiModel, Column, Kind, Violation, dig
from kars_controller.api_types.published import CelRule, Published
from kars_controller.api_types.status import NamedObject, Status, Time

MAX_VERTICES = 10_000
MAX_EDGES = 50_000
_MAX_ID_CHARS = 512


def _vertex_id(text: str) -> str:
    # An edge's signature covers lines of text: an id with a line break could be read in two ways.
    if not text or len(text) > _MAX_ID_CHARS or not all(char.isprintable() and char != " " for char in text):
        raise PydanticCustomError(
            "vertex", "allowed: <name>, <namespace>/<name>, a2a-agent/<namespace>/<name> or a SPIFFE id"
        )
    return text


VertexId = Annotated[
    str,
    AfterValidator(_vertex_id),
    Published(pattern=r"^[^\x00-\x20\x7f-\xa0]+$", maxLength=_MAX_ID_CHARS),
]
UnixSeconds = Annotated[int, Field(ge=0, le=MAX_INT64)]


class Vertex(ApiModel):
    """One identity, and the key that signs its edges."""

    id: VertexId
    """Whom it is: name, namespace/name, a2a-agent/namespace/name or a SPIFFE id."""
    alg: Literal["EdDSA"]
    """Algorithm of the key."""
    public_key_b64u: Annotated[str, Field(alias="publicKeyB64u", max_length=128)]
    """The Ed25519 public key, base64url without padding."""
    label: str | None = None
    """A name for people."""


class Edge(ApiModel):
    """`from` may write to `to`, and trusts it with `score`; signed by `from`."""

    source: Annotated[VertexId, Field(alias="from")]
    """Who trusts and signs."""
    target: Annotated[VertexId, Field(alias="to")]
    """Who is trusted."""
    score: Annotated[int, Field(ge=0, le=1000)]
    """How much."""
    issued_at: UnixSeconds
    """Unix time from which the edge holds."""
    not_after: UnixSeconds | None = None
    """Unix time at which it ends; absent: it does not."""
    signature: Annotated[str, Field(max_length=256)]
    """Ed25519 by the key of `from`, base64url without padding."""
    reason: str | None = None
    """For people; not signed."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!has(self.notAfter) || self.notAfter >= self.issuedAt", "allowed: at least issuedAt", ".notAfter"
        ),
    )


class TrustGraphSpec(ApiModel):
    """The vertices and the signed edges between them."""

    vertices: Annotated[list[Vertex], Field(min_length=1, max_length=MAX_VERTICES)]
    """Identities and their keys."""
    edges: Annotated[list[Edge], Field(max_length=MAX_EDGES)] = Field(default_factory=list)
    """Who may write to whom."""


class TrustGraphStatus(Status):
    """What of the graph counts."""

    valid_vertices: int | None = None
    """Vertices that count."""
    valid_edges: int | None = None
    """Edges that hold now."""
    invalid_edges: int | None = None
    """Rejected for ever: no such vertex, or the signature does not fit."""
    inactive_edges: int | None = None
    """Outside their time now."""
    projection_config_map_ref: NamedObject | None = None
    last_reconciled_at: Time | None = None


def _rules(spec: Mapping[str, Any]) -> Iterator[Violation]:
    edges = spec.get("edges")
    for index, edge in enumerate(edges if isinstance(edges, list) else ()):
        issued, ends = dig(edge, "issuedAt"), dig(edge, "notAfter")
        if isinstance(issued, int) and isinstance(ends, int) and ends < issued:
            yield Violation(
                f"spec.edges[{index}].notAfter", f"got {ends}, allowed: at least issuedAt, {issued}"
            )


TRUST_GRAPH = Kind(
    name="TrustGraph",
    plural="trustgraphs",
    short_names=("tg",),
    namespaced=False,
    spec=TrustGraphSpec,
    status=TrustGraphStatus,
    columns=(
        PHASE,
        Column(name="Vertices", json_path=".status.validVertices", type="integer"),
        Column(name="ValidEdges", json_path=".status.validEdges", type="integer"),
        Column(name="InvalidEdges", json_path=".status.invalidEdges", type="integer"),
        AGE,
    ),
    rules=_rules,
)
