"""Cards at hand: fetched from agents, believed for a while, kept for when an agent is away; published signed.

An agent whose card must be signed and is not, or not by a pinned key, has no card here, and so is not served.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from a2a.types import AgentCard, GetExtendedAgentCardRequest
from google.protobuf.message import DecodeError
from kars.a2a.v1 import delivery_pb2
from kars_common.agent_cards import CardSigningKey, CardVerdict, card_json, sign_card, verify_card
from kars_common.errors import InvalidInputError, KarsError, PermissionDeniedError

from kars_a2a_gateway.callers.principals import Principal
from kars_a2a_gateway.cards.key_ring import KeyRing
from kars_a2a_gateway.cards.rewriting import rewrite
from kars_a2a_gateway.errors import A2AError, Kind, unavailable
from kars_a2a_gateway.inside.delivery import Agents
from kars_a2a_gateway.policy.exposures import Exposure, GatewayTable
from kars_a2a_gateway.storage.scripts import Database, Script, Statement

_LOG = logging.getLogger(__name__)
_MAX_CARD_BYTES = 256 * 1024
_RETRY_S = 5.0

Envelopes = Callable[[Exposure], delivery_pb2.Envelope]


@dataclass(frozen=True, kw_only=True)
class PublicCard:
    """A card as it is served."""

    card: AgentCard
    body: bytes
    etag: str


@dataclass
class _Held:
    exposure: Exposure
    card: AgentCard
    verdict: CardVerdict | None
    until_s: float


@dataclass(frozen=True)
class _Published:
    """A public card, and the very objects that it was made of."""

    card: AgentCard
    exposure: Exposure
    table: GatewayTable
    key: CardSigningKey
    published: PublicCard

    def made_of(self, card: AgentCard, exposure: Exposure, table: GatewayTable, key: CardSigningKey) -> bool:
        same = self.card is card and self.exposure is exposure and self.table is table
        return same and self.key.kid == key.kid


class Shelf:
    """The cards of all agents."""

    def __init__(
        self,
        database: Database,
        agents: Agents,
        ring: KeyRing,
        envelopes: Envelopes,
        *,
        public_url: str,
        grpc_target: str | None,
        max_age_s: float,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._agents = agents
        self._ring = ring
        self._envelopes = envelopes
        self._public_url = public_url
        self._grpc_target = grpc_target
        self._max_age_s = max_age_s
        self._clock_s = clock_s
        self._held: dict[str, _Held] = {}
        self._public: dict[str, _Published] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def public(self, exposure: Exposure, table: GatewayTable) -> PublicCard:
        """Return the signed public card of an agent.

        Raises:
            A2AError: UNAVAILABLE when no card was ever had; INVALID_AGENT_RESPONSE for one that is refused.
        """
        held = await self._own(exposure)
        known = self._public.get(exposure.agent)
        if known is not None and known.made_of(held.card, exposure, table, self._ring.active):
            return known.published
        published = self._publish(held.card, held.verdict, exposure, table, None)
        self._public[exposure.agent] = _Published(held.card, exposure, table, self._ring.active, published)
        return published

    async def extended(
        self, exposure: Exposure, table: GatewayTable, principal: Principal, envelope: delivery_pb2.Envelope
    ) -> AgentCard:
        """Return the extended card for one caller, signed.

        Raises:
            A2AError: what the agent or the way to it says; INVALID_AGENT_RESPONSE for a card that is refused.
        """
        raw = await self._agents.call(
            exposure,
            envelope,
            delivery_pb2.CALL_METHOD_GET_EXTENDED_CARD,
            GetExtendedAgentCardRequest().SerializeToString(),
        )
        card, verdict = self._take_in(raw, exposure)
        skills = principal.skills if principal.skills is not None else frozenset()
        return self._publish(card, verdict, exposure, table, skills).card

    def base_url(self, exposure: Exposure) -> str:
        """Return where the HTTP bindings of an agent are."""
        return f"{self._public_url}/agents/{exposure.agent}"

    @property
    def jku(self) -> str:
        """Where the key set is."""
        return f"{self._public_url}/.well-known/jwks.json"

    def _publish(
        self,
        card: AgentCard,
        verdict: CardVerdict | None,
        exposure: Exposure,
        table: GatewayTable,
        skills: frozenset[str] | None,
    ) -> PublicCard:
        public = rewrite(
            card,
            exposure,
            table,
            base_url=self.base_url(exposure),
            grpc_target=self._grpc_target,
            verdict=verdict,
            skills=skills,
        )
        try:
            signed = sign_card(public, self._ring.active, jku=self.jku)
        except InvalidInputError as exc:
            raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent's card cannot be signed") from exc
        # ES256 signatures differ each time: the tag is of what was signed, so that it lasts.
        body = card_json(signed)
        tag = hashlib.sha256(card_json(public) + self._ring.active.kid.encode()).hexdigest()[:32]
        return PublicCard(card=signed, body=body, etag=f'"{tag}"')

    async def _own(self, exposure: Exposure) -> _Held:
        held = self._held.get(exposure.agent)
        now_s = self._clock_s()
        if held is not None and held.exposure is exposure and now_s < held.until_s:
            return held
        lock = self._locks.setdefault(exposure.agent, asyncio.Lock())
        async with lock:
            again = self._held.get(exposure.agent)
            if again is not None and again.exposure is exposure and self._clock_s() < again.until_s:
                return again
            fresh = await self._fetch(exposure, held)
            self._held[exposure.agent] = fresh
            return fresh

    async def _fetch(self, exposure: Exposure, held: _Held | None) -> _Held:
        try:
            raw = await self._agents.call(
                exposure, self._envelopes(exposure), delivery_pb2.CALL_METHOD_GET_CARD, b""
            )
        except A2AError as error:
            return await self._kept(exposure, held, error)
        card, verdict = self._take_in(raw, exposure)
        if held is not None and held.card == card:
            card = held.card  # the same object: what was published stays as it is
        else:
            await self._keep(exposure, card)
        return _Held(exposure, card, verdict, self._clock_s() + self._max_age_s)

    async def _kept(self, exposure: Exposure, held: _Held | None, error: A2AError) -> _Held:
        """Return the last card that was had; an agent that sleeps still has a card."""
        raw = held.card.SerializeToString() if held is not None else None
        if raw is None:
            try:
                raw = await self._database.run(lambda: _recall(exposure.agent))
            except KarsError as exc:
                raise error from exc
        if raw is None:
            raise error
        card, verdict = self._take_in(raw, exposure)
        _LOG.info("an agent's card is the last known one", extra={"agent": exposure.agent})
        return _Held(exposure, card, verdict, self._clock_s() + _RETRY_S)

    async def _keep(self, exposure: Exposure, card: AgentCard) -> None:
        raw = card.SerializeToString()
        try:
            await self._database.run(lambda: _remember(exposure.agent, raw))
        except KarsError:
            _LOG.warning("an agent's card is not kept: no database", extra={"agent": exposure.agent})

    def _take_in(self, raw: bytes, exposure: Exposure) -> tuple[AgentCard, CardVerdict | None]:
        """Judge an agent's card.

        Raises:
            A2AError: INVALID_AGENT_RESPONSE, or UNAVAILABLE for a signature that policy demands and is not
            there.
        """
        if len(raw) > _MAX_CARD_BYTES:
            raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent's card is too large")
        try:
            card = AgentCard.FromString(raw)
        except DecodeError as exc:
            raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent's card is not valid") from exc
        if not exposure.card_keys:
            return card, None
        try:
            verdict = verify_card(card, exposure.card_keys, datetime.fromtimestamp(self._clock_s(), UTC))
        except (PermissionDeniedError, InvalidInputError) as exc:
            _LOG.warning("an agent's card is refused", extra={"agent": exposure.agent, "reason": exc.reason})
            if exposure.require_signed_card or card.signatures:
                raise unavailable(
                    "the agent's card does not carry the signature that policy asks for"
                ) from exc
            return card, None
        return card, verdict


def _remember(agent: str, card: bytes) -> Script[None]:
    yield Statement("DELETE FROM settings WHERE name = ?", (f"card:{agent}",))
    yield Statement("INSERT INTO settings (name, value) VALUES (?, ?)", (f"card:{agent}", card))


def _recall(agent: str) -> Script[bytes | None]:
    rows = yield Statement("SELECT value FROM settings WHERE name = ?", (f"card:{agent}",))
    return bytes(rows[0][0]) if rows else None
