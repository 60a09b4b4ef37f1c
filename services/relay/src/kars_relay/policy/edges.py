"""Who may write to whom: edges between names and patterns of names.

An edge whose ends are both literal is found by hash; patterns are tried only for pairs that none fits, and
their answer is remembered. Knows nothing of time zones of policy: an edge with an end is judged when asked.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId

_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Edge:
    """A permission to write."""

    score: int
    not_after_s: float | None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A name whose whole segments may be `*`; the trust domain is literal."""

    trust_domain: str
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Parse a pattern.

        Raises:
            InvalidInputError: `pattern_invalid`.
        """
        try:
            literal = SpiffeId.parse(text.replace("/*", "/any"))
        except InvalidInputError as exc:
            raise InvalidInputError("pattern_invalid", f"not a name or pattern: {text[:200]!r}") from exc
        parts = tuple(text.removeprefix("spiffe://").split("/")[1:])
        if any("*" in part and part != "*" for part in parts) or len(parts) != len(literal.segments):
            raise InvalidInputError("pattern_invalid", f"* stands for a whole segment: {text[:200]!r}")
        return cls(literal.trust_domain, parts)

    @property
    def literal(self) -> bool:
        """Whether it is one name."""
        return "*" not in self.segments

    def fits(self, name: SpiffeId) -> bool:
        """Tell whether a name is meant."""
        return (
            name.trust_domain == self.trust_domain
            and len(name.segments) == len(self.segments)
            and all(part in ("*", own) for part, own in zip(self.segments, name.segments, strict=True))
        )


class EdgeIndex:
    """All edges of a bundle. Immutable but for its memory."""

    def __init__(self, edges: Iterable[tuple[str, str, Edge]]) -> None:
        """Index edges.

        Raises:
            InvalidInputError: `pattern_invalid`.
        """
        self._exact: dict[tuple[str, str], list[Edge]] = {}
        self._patterns: list[tuple[Pattern, Pattern, Edge]] = []
        self._remembered: dict[tuple[str, str], tuple[Edge, ...]] = {}
        for source, target, edge in edges:
            ends = Pattern.parse(source), Pattern.parse(target)
            if ends[0].literal and ends[1].literal:
                self._exact.setdefault((source, target), []).append(edge)
            else:
                self._patterns.append((*ends, edge))

    def find(self, source: SpiffeId, target: SpiffeId, now_s: float) -> Edge | None:
        """Return the edge with the highest score that holds now; None when there is none."""
        names = str(source), str(target)
        fitting = self._remembered.get(names)
        if fitting is None:
            fitting = self._fitting(source, target, names)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[names] = fitting
        holding = [edge for edge in fitting if edge.not_after_s is None or now_s < edge.not_after_s]
        return max(holding, key=lambda edge: edge.score, default=None)

    def _fitting(self, source: SpiffeId, target: SpiffeId, names: tuple[str, str]) -> tuple[Edge, ...]:
        found = list(self._exact.get(names, ()))
        if source != target:  # a wildcard is no permission to write to oneself
            found += [
                edge
                for wanted_source, wanted_target, edge in self._patterns
                if wanted_source.fits(source) and wanted_target.fits(target)
            ]
        return tuple(found)
