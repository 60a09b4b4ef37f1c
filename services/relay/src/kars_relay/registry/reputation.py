"""Reputation: what peers say of one another, weighed by how far policy trusts them to say it.

score = sum(weight x rating) / (sum(weight) + 1000), rounded down; a weight is the score (0 to 1000) of
TrustGraph's edge from the rater to the peer. So a peer that nobody vouched for has 0, a crowd without edges
moves nothing, and one rater alone never brings anybody above the middle.
"""

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from kars_common.errors import InvalidInputError, PermissionDeniedError
from kars_common.spiffe import SpiffeId

from kars_relay.policy import Rules
from kars_relay.registry.database import RegistryDatabase

_PRIOR = 1000
_MAX_SCORE = 1000


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One peer's reputation."""

    score: int
    raters: int


class Reputations:
    """All ratings."""

    def __init__(self, database: RegistryDatabase, clock_s: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock_s = clock_s

    async def rate(self, rules: Rules, rater: SpiffeId, peer: SpiffeId, score: int) -> Standing:
        """Record a rating; it replaces the rater's earlier one.

        Raises:
            InvalidInputError: `score_out_of_range`.
            PermissionDeniedError: `rating_not_allowed`: of oneself, or without a weight.
        """
        if score > _MAX_SCORE:
            raise InvalidInputError("score_out_of_range", "a score is 0 to 1000")
        edge = rules.edge(rater, peer)
        if rater == peer or edge is None or edge.score == 0:
            raise PermissionDeniedError(
                "rating_not_allowed", "TrustGraph gives the caller no weight about this peer"
            )
        values = (str(rater), str(peer), score, self._clock_s())

        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO ratings VALUES (?, ?, ?, ?)", values)

        await self._database.run(work)
        return await self.standing(rules, peer)

    async def standing(self, rules: Rules, peer: SpiffeId) -> Standing:
        """Return a peer's reputation under the rules in force now."""

        def work(db: sqlite3.Connection) -> list[tuple[str, int]]:
            rows = db.execute("SELECT rater, score FROM ratings WHERE peer = ?", (str(peer),))
            return [(row["rater"], row["score"]) for row in rows]

        weighed = total = raters = 0
        for rater, score in await self._database.run(work):
            edge = rules.edge(SpiffeId.parse(rater), peer)
            if edge is not None and edge.score:
                weighed += edge.score * score
                total += edge.score
                raters += 1
        return Standing(score=weighed // (total + _PRIOR), raters=raters)
