"""Who may knock: a decision over plain data, without network or disk.

The platform hands in a policy (edges of the TrustGraph, threshold, rates, purposes). What it does not allow
is refused: no edge, no session; nothing known about a peer is a score of 0, below every threshold above 0.
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kars_sdk.mesh.errors import IdentityError
from kars_sdk.mesh.names import PeerName

MAX_POLICY_BYTES = 4 * 1024 * 1024
MAX_SCORE = 1000
DEFAULT_THRESHOLD = 500
_MEMBERS = {
    "threshold", "edges", "requireEdge", "deniedPeers", "purposes", "knocksPerMinute",
    "knocksPerMinutePerPeer", "allowClassic",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Edge:
    """`source` may write to `target`, and trusts it with `score`. A path segment `*` stands for any one."""

    source: str
    target: str
    score: int = 0
    not_after: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.score <= MAX_SCORE:
            raise IdentityError("trust_policy_invalid", f"an edge's score is 0 to {MAX_SCORE}")

    def fits(self, source: PeerName, target: PeerName, now: float) -> bool:
        """Tell whether this edge speaks of these two, now."""
        if self.not_after is not None and now >= self.not_after:
            return False
        if source == target and "*" in self.source + self.target:
            return False
        return _fits(self.source, source) and _fits(self.target, target)


@dataclass(frozen=True, kw_only=True)
class TrustPolicy:
    """What the receiver of a KNOCK goes by. The defaults let nobody in."""

    edges: tuple[Edge, ...] = ()
    threshold: int = DEFAULT_THRESHOLD
    require_edge: bool = True
    denied_peers: frozenset[str] = frozenset()
    purposes: frozenset[str] = frozenset({"session"})
    knocks_per_minute: int = 60
    knocks_per_minute_per_peer: int = 6
    allow_classic: bool = False
    """Whether a handshake without a post-quantum KEM may be made with a peer that offers none."""

    @classmethod
    def from_json(cls, data: bytes) -> "TrustPolicy":
        """Read the file that the platform mounts; see the README for its form.

        Raises:
            IdentityError: `trust_policy_invalid`; an unknown member is refused, too.
        """
        if len(data) > MAX_POLICY_BYTES:
            raise IdentityError("trust_policy_invalid", f"the mesh policy has {len(data)} bytes")
        try:
            return _policy(json.loads(data.decode()))
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as exc:
            raise IdentityError("trust_policy_invalid", "the mesh policy is not as documented") from exc


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, by which rule, and the score that it rests on."""

    accepted: bool
    reason: str
    score: int = 0


def decide(
    policy: TrustPolicy,
    *,
    sender: PeerName,
    receiver: PeerName,
    purpose: str,
    now: float,
    reputation: int | None = None,
) -> Decision:
    """Decide a KNOCK whose signature was verified.

    `reputation` is what the registry says, 0 to 1000, or None when it could not be asked. It counts only
    where the receiver's own edge says nothing; without both, a threshold above 0 refuses.
    """
    reason = withdrawn(policy, sender=sender, receiver=receiver, now=now)
    if reason:
        return Decision(accepted=False, reason=reason)
    if purpose not in policy.purposes:
        return Decision(accepted=False, reason="purpose_not_allowed")
    own = [edge.score for edge in policy.edges if edge.fits(receiver, sender, now)]
    if not own and reputation is None and policy.threshold > 0:
        return Decision(accepted=False, reason="trust_unknown")
    score = max(own) if own else min(max(reputation or 0, 0), MAX_SCORE)
    if score < policy.threshold:
        return Decision(accepted=False, reason="trust_below_threshold", score=score)
    return Decision(accepted=True, reason="accepted", score=score)


def withdrawn(policy: TrustPolicy, *, sender: PeerName, receiver: PeerName, now: float) -> str:
    """Return why a peer may not write at all, whatever it is trusted with; empty when it may.

    Asked for every message, too: an edge that is taken away ends a session that it once allowed.
    """
    if sender in policy.denied_peers:
        return "peer_denied"
    if policy.require_edge and not any(edge.fits(sender, receiver, now) for edge in policy.edges):
        return "edge_missing"
    return ""


@dataclass
class KnockLimiter:
    """Token buckets, one a peer and one for all; a peer that is unknown costs memory only up to a bound."""

    clock: Callable[[], float]
    max_peers: int = 4096
    _buckets: "OrderedDict[str, tuple[float, float]]" = field(default_factory=OrderedDict)

    def allow(self, peer: PeerName, policy: TrustPolicy) -> bool:
        """Take a token for a KNOCK of this peer; False when it has none left."""
        return self._take(peer, policy.knocks_per_minute_per_peer) and self._take(
            "", policy.knocks_per_minute
        )

    def _take(self, name: str, per_minute: int) -> bool:
        now = self.clock()
        tokens, then = self._buckets.pop(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + max(0.0, now - then) * per_minute / 60)
        allowed = tokens >= 1
        self._buckets[name] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self.max_peers:
            self._buckets.popitem(last=False)
        return allowed


def _fits(pattern: str, name: str) -> bool:
    if "*" not in pattern:
        return pattern == name
    wanted, got = pattern.split("/"), name.split("/")
    return len(wanted) == len(got) and all(w in {"*", g} for w, g in zip(wanted, got, strict=True))


def _policy(document: dict[str, Any]) -> TrustPolicy:
    if not set(document) <= _MEMBERS:
        raise ValueError("unknown member")
    defaults = TrustPolicy()
    return TrustPolicy(
        edges=tuple(_edge(edge) for edge in document.get("edges", [])),
        threshold=_number(document.get("threshold", defaults.threshold), MAX_SCORE),
        require_edge=_boolean(document.get("requireEdge", True)),
        denied_peers=frozenset(str(peer) for peer in document.get("deniedPeers", [])),
        purposes=frozenset(str(purpose) for purpose in document.get("purposes", ["session"])),
        knocks_per_minute=_number(document.get("knocksPerMinute", defaults.knocks_per_minute), 100_000),
        knocks_per_minute_per_peer=_number(
            document.get("knocksPerMinutePerPeer", defaults.knocks_per_minute_per_peer), 100_000
        ),
        allow_classic=_boolean(document.get("allowClassic", False)),
    )


def _edge(document: dict[str, Any]) -> Edge:
    if not set(document) <= {"from", "to", "score", "notAfter"}:
        raise ValueError("unknown member")
    not_after = document.get("notAfter")
    return Edge(
        source=_pattern(document["from"]),
        target=_pattern(document["to"]),
        score=_number(document.get("score", 0), MAX_SCORE),
        not_after=None if not_after is None else _number(not_after, 1 << 53),
    )


def _pattern(text: str) -> str:
    segments = text.split("/")
    if not text.startswith("spiffe://") or len(segments) != 7 or "*" in segments[2]:
        raise ValueError("a pattern is a SPIFFE id in which path segments may be *")
    return text


def _number(value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError("not a number in range")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not a boolean")
    return value
