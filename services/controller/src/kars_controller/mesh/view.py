"""Everything that resources say about the mesh, as edges; and the part of it that concerns one sandbox.

Sources of edges: TrustGraphs, and sandboxes that name each other in `trustedPeers`. One sandbox alone cannot
open a way to another: what it lists lets the other write to it, and it may write back when the other lists it
too.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId

from kars_controller.api_types import parse_spec, peers
from kars_controller.api_types.auth_config import AUTH_CONFIG_NAME
from kars_controller.api_types.base import dig
from kars_controller.mesh.edges import GraphVerdict, MeshEdge, judge_graph
from kars_controller.resources import Document, ResourceKey, ResourceStore, deleting

TRUSTED_PEER_SCORE = 700
"""How far a sandbox trusts a peer that it lists: above the usual threshold of 500."""


@dataclass(frozen=True, kw_only=True)
class PeerView:
    """One sandbox's part of the mesh."""

    peer: SpiffeId
    edges: tuple[MeshEdge, ...] = ()
    one_sided: tuple[str, ...] = ()
    """Peers that it lists and that do not list it: no conversation comes about."""
    unavailable: str = ""
    """Why it has no part in the mesh at all."""


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """All edges as they were at one version of the store, for as long as time changes none of them."""

    version: int
    from_s: float
    until_s: float
    edges: tuple[MeshEdge, ...]
    by_peer: Mapping[SpiffeId, list[MeshEdge]]


class MeshView:
    """Reads the store. Verdicts on graphs are remembered: signatures do not change."""

    def __init__(self, store: ResourceStore, trust_domain: str) -> None:
        self._store = store
        self.trust_domain = trust_domain
        self._snapshot: _Snapshot | None = None
        self._verdicts: dict[ResourceKey, tuple[str, int, GraphVerdict]] = {}

    def verdict(self, graph: Document) -> GraphVerdict:
        """Return what a TrustGraph is worth; nothing when its spec cannot be read."""
        key, metadata = ResourceKey.of(graph), graph["metadata"]
        known = self._verdicts.get(key)
        if known is not None and known[:2] == (metadata["uid"], metadata["generation"]):
            return known[2]
        try:
            found = judge_graph(parse_spec(graph), self.trust_domain)
        except InvalidInputError:
            found = GraphVerdict(valid_vertices=0, edges=())
        self._verdicts[key] = (metadata["uid"], metadata["generation"], found)
        return found

    def edges(self, now_s: float) -> tuple[MeshEdge, ...]:
        """Return every edge that counts now, without those of sandboxes that may not be in the mesh."""
        return self._now(now_s).edges

    def of(self, sandbox: Document, now_s: float) -> PeerView:
        """Return one sandbox's part."""
        peer = self.name_of(sandbox)
        reason = self._unavailable(sandbox)
        if reason:
            return PeerView(peer=peer, unavailable=reason)
        edges = tuple(self._now(now_s).by_peer.get(peer, ()))
        outgoing = {edge.recipient for edge in edges if edge.sender == peer}
        one_sided = [str(other) for other in self._listed(sandbox) if other not in outgoing]
        return PeerView(peer=peer, edges=edges, one_sided=tuple(one_sided))

    def next_change_s(self, now_s: float) -> float | None:
        """Return in how many seconds some edge begins or ends by itself; None when none will."""
        changes = [self.verdict(graph).next_change_s(now_s) for graph in self._graphs()]
        return min((change for change in changes if change is not None), default=None)

    def name_of(self, sandbox: Document) -> SpiffeId:
        """Return a sandbox's name in the mesh."""
        metadata = sandbox["metadata"]
        return SpiffeId.sandbox(self.trust_domain, metadata["namespace"], metadata["name"])

    def _now(self, now_s: float) -> "_Snapshot":
        """Return the edges of this moment; computed again when a resource changed, an edge begins or ends."""
        version = self._store.resource_version
        known = self._snapshot
        if known is not None and known.version == version and known.from_s <= now_s < known.until_s:
            return known
        places = self._places()
        found = dict.fromkeys((*self._graph_edges(now_s), *self._listed_edges()))
        edges = tuple(edge for edge in found if self._admissible(edge, places))
        by_peer: dict[SpiffeId, list[MeshEdge]] = {}
        for edge in edges:
            by_peer.setdefault(edge.sender, []).append(edge)
            by_peer.setdefault(edge.recipient, []).append(edge)
        next_s = self.next_change_s(now_s)
        until_s = float("inf") if next_s is None else now_s + next_s
        self._snapshot = _Snapshot(
            version=version, from_s=now_s, until_s=until_s, edges=edges, by_peer=by_peer
        )
        return self._snapshot

    def _graphs(self) -> Iterator[Document]:
        return (graph for graph in self._store.list_kind("TrustGraph") if not deleting(graph))

    def _sandboxes(self) -> Iterator[Document]:
        return (item for item in self._store.list_kind("KarsSandbox") if not deleting(item))

    def _graph_edges(self, now_s: float) -> Iterator[MeshEdge]:
        for graph in self._graphs():
            yield from self.verdict(graph).holding(now_s)

    def _listed_edges(self) -> Iterator[MeshEdge]:
        listed = {self.name_of(sandbox): set(self._listed(sandbox)) for sandbox in self._sandboxes()}
        for owner, others in listed.items():
            for other in others:
                mutual = owner in listed.get(other, ())
                yield MeshEdge(sender=other, recipient=owner, score=TRUSTED_PEER_SCORE if mutual else 0)
                if mutual:
                    yield MeshEdge(sender=owner, recipient=other, score=TRUSTED_PEER_SCORE)

    def _listed(self, sandbox: Document) -> Iterable[SpiffeId]:
        text = dig(sandbox, "spec", "governance", "trustedPeers")
        namespace = sandbox["metadata"]["namespace"]
        found = (
            peers.parse_entry(entry, namespace, self.trust_domain) for entry in peers.entries(text or "")
        )
        own = self.name_of(sandbox)
        return tuple(dict.fromkeys(peer for peer in found if peer is not None and peer != own))

    def _places(self) -> dict[SpiffeId, tuple[bool, bool]]:
        """Return for each sandbox whether it may be in the mesh, and whether beyond this trust domain."""
        return {
            self.name_of(sandbox): (
                not self._unavailable(sandbox),
                dig(sandbox, "spec", "governance", "registryMode") == "global",
            )
            for sandbox in self._sandboxes()
        }

    def _admissible(self, edge: MeshEdge, places: dict[SpiffeId, tuple[bool, bool]]) -> bool:
        ends = (edge.sender, edge.recipient)
        abroad = any(end.trust_domain != self.trust_domain for end in ends)
        own = [end for end in ends if end.trust_domain == self.trust_domain]
        # An edge between two foreign domains is none of ours; a sandbox that does not exist yet has no edges.
        return bool(own) and all(
            end in places and places[end][0] and (places[end][1] or not abroad) for end in own
        )

    def _unavailable(self, sandbox: Document) -> str:
        """Return why a sandbox may not be in the mesh; empty when it may."""
        mode = dig(sandbox, "spec", "meshAuth", "mode") or "auto"
        if mode != "agent-id":
            return ""
        config = self._store.find(ResourceKey("KarsAuthConfig", "", AUTH_CONFIG_NAME))
        if config is None:
            return "spec.meshAuth.mode agent-id needs KarsAuthConfig/default, which does not exist"
        return "spec.meshAuth.mode agent-id needs a directory, which this platform has none of"
