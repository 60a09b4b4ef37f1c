"""What policy says about one sandbox's part in the mesh: who it is there, and who may write to whom."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kars.policy.v1 import policy_pb2
from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId

from kars_router.governance.engine import PolicyCompileError

MAX_EDGES = 100_000
MAX_SCORE = 1000
MAX_NAME_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A permission to write, with the trust of the sender in the recipient."""

    sender: tuple[str, ...]
    recipient: tuple[str, ...]
    score: int
    not_after: int | None

    def holds(self, now_s: float) -> bool:
        """Tell whether it counts now."""
        return self.not_after is None or now_s < self.not_after


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshAccess:
    """One sandbox's part, compiled. Immutable."""

    peer: str
    relay_endpoint: str
    edges: tuple[Edge, ...]
    threshold: int
    now_s: Callable[[], float] = time.time

    @classmethod
    def compile(cls, bundle: policy_pb2.PolicyBundle) -> "MeshAccess | None":
        """Read a bundle's part; None when the sandbox has none.

        Raises:
            PolicyCompileError: a name, a score or the subject is wrong, or it carries a relay's rules.
        """
        if bundle.HasField("mesh"):
            raise PolicyCompileError("mesh rules are for relays; a sandbox's bundle has mesh_access")
        if not bundle.HasField("mesh_access"):
            return None
        access = bundle.mesh_access
        named = _name(access.peer)
        if named is None or named.sandbox_ref != (bundle.sandbox.namespace, bundle.sandbox.name):
            raise PolicyCompileError("mesh_access.peer is not this sandbox")
        if len(access.edges) > MAX_EDGES or access.trust_threshold > MAX_SCORE:
            raise PolicyCompileError("mesh_access has too many edges or a threshold above 1000")
        return cls(
            peer=str(named),
            relay_endpoint=access.relay_endpoint,
            edges=tuple(_edge(edge) for edge in access.edges),
            threshold=access.trust_threshold,
        )

    def may_send(self, recipient: str) -> bool:
        """Tell whether the agent may write to a peer now."""
        return self._edge(self.peer, recipient)

    def may_receive(self, sender: str) -> bool:
        """Tell whether a peer may write to the agent now."""
        return self._edge(sender, self.peer)

    def document(self) -> dict[str, Any]:
        """Return what the agent goes by when a peer knocks, as the sdk's trust policy reads it."""
        edges = []
        for edge in self.edges:
            item: dict[str, Any] = {
                "from": "spiffe://" + "/".join(edge.sender),
                "to": "spiffe://" + "/".join(edge.recipient),
                "score": edge.score,
            }
            if edge.not_after is not None:
                item["notAfter"] = edge.not_after
            edges.append(item)
        return {"threshold": self.threshold, "requireEdge": True, "edges": edges}

    def _edge(self, sender: str, recipient: str) -> bool:
        source, target, now_s = _split(sender), _split(recipient), self.now_s()
        literal = sender != recipient
        return any(
            edge.holds(now_s)
            and _fits(edge.sender, source, wild=literal)
            and _fits(edge.recipient, target, wild=literal)
            for edge in self.edges
        )


def peer_name(text: str) -> SpiffeId | None:
    """Return the sandbox that a name stands for; None when it is none."""
    found = _name(text)
    return found if found is not None and found.sandbox_ref is not None else None


def _edge(edge: Any) -> Edge:  # noqa: ANN401 - kars.mesh.v1.MeshEdge
    if edge.score > MAX_SCORE:
        raise PolicyCompileError("an edge's score is above 1000")
    for end in (edge.sender, edge.recipient):
        if _name(end.replace("/*", "/any")) is None:
            raise PolicyCompileError("an edge's end is no name")
    return Edge(
        sender=_split(edge.sender),
        recipient=_split(edge.recipient),
        score=edge.score,
        not_after=edge.not_after.seconds if edge.HasField("not_after") else None,
    )


def _fits(pattern: tuple[str, ...], name: tuple[str, ...], *, wild: bool) -> bool:
    return len(pattern) == len(name) and all(
        part == own or (wild and part == "*" and place > 0)
        for place, (part, own) in enumerate(zip(pattern, name, strict=True))
    )


def _split(name: str) -> tuple[str, ...]:
    return tuple(name.removeprefix("spiffe://").split("/"))


def _name(text: str) -> SpiffeId | None:
    if len(text) > MAX_NAME_BYTES:
        return None
    try:
        return SpiffeId.parse(text)
    except InvalidInputError:
        return None
