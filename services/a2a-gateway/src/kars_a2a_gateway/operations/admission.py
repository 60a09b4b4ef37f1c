"""Every request's way in, in this order; nothing looks anything up before it is through.

1. the agent: one that policy exposes at this moment, or it does not exist
2. Origin: a browser's page is let in only where policy names it
3. rate of the agent as a whole (a cheap bound before any signature is computed)
4. the caller: credentials, then requirements
5. rate of the caller

Version and extensions are judged after that (`operations.dispatch`), when the request's own id is known. A
refusal is recorded with what is known of the caller by then.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.callers.authenticator import Authenticator
from kars_a2a_gateway.callers.principals import Credentials, Principal
from kars_a2a_gateway.errors import A2AError, Kind
from kars_a2a_gateway.limits.rates import Rates
from kars_a2a_gateway.metrics import GatewayMetrics
from kars_a2a_gateway.policy.exposures import Exposure, GatewayTable
from kars_a2a_gateway.tasks.owners import Owner
from kars_a2a_gateway.wire import negotiation

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, kw_only=True)
class Knock:
    """A request as a door hands it over."""

    agent: str
    credentials: Credentials
    version: str
    missing_version: str = "0.3"
    extensions: Sequence[str] = ()
    origin: str = ""
    peer: str = ""
    traceparent: str = ""


@dataclass(kw_only=True)
class Call:
    """A request that was let in."""

    id: str
    table: GatewayTable
    exposure: Exposure
    principal: Principal
    version: str
    """As asked for, or what a missing one means."""
    extensions: tuple[str, ...]
    """As asked for."""
    active: tuple[str, ...] = ()
    """Those of them that the card offers; set by the dispatcher."""
    peer: str
    traceparent: str

    @property
    def owner(self) -> Owner:
        """Who owns what this call makes."""
        return Owner(self.exposure.agent, self.principal.id)


class Admission:
    """Judges every knock."""

    def __init__(
        self,
        table: Callable[[], GatewayTable],
        authenticator: Authenticator,
        rates: Rates,
        *,
        recorder: Recorder,
        metrics: GatewayMetrics,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._authenticator = authenticator
        self._rates = rates
        self._recorder = recorder
        self._metrics = metrics
        self._clock_s = clock_s

    def find(self, agent: str) -> tuple[Exposure, GatewayTable]:
        """Return an exposed agent.

        Raises:
            A2AError: AGENT_NOT_FOUND, whatever the reason.
        """
        table = self._table()
        exposure = table.find(agent, datetime.fromtimestamp(self._clock_s(), UTC))
        if exposure is None:
            raise A2AError(Kind.AGENT_NOT_FOUND, "no such agent here")
        return exposure, table

    async def enter(self, knock: Knock) -> Call:
        """Let a request in.

        Raises:
            A2AError: it is not.
        """
        exposure, table = self.find(knock.agent)
        if knock.origin and knock.origin not in exposure.allowed_origins:
            raise A2AError(
                Kind.PERMISSION_DENIED,
                "this origin may not call this agent",
                metadata={"why": "origin_not_allowed"},
            )
        limits = exposure.limits
        self._spend(f"agent {exposure.agent}", limits.agent_rate_per_s, limits.agent_burst)
        principal = await self._authenticator.authenticate(
            exposure, knock.credentials, table, self._clock_s()
        )
        owner = Owner(exposure.agent, principal.id)
        self._spend(f"caller {owner.agent} {owner.principal}", limits.caller_rate_per_s, limits.caller_burst)
        return Call(
            id=call_id(self._clock_s()),
            table=table,
            exposure=exposure,
            principal=principal,
            version=knock.version.strip() or knock.missing_version,
            extensions=negotiation.requested_extensions(knock.extensions),
            peer=knock.peer,
            traceparent=knock.traceparent,
        )

    def limit_strangers(self, agent: str) -> None:
        """Bound what anybody may fetch without being asked who they are (cards, metadata).

        Raises:
            A2AError: RATE_LIMITED.
        """
        exposure, _ = self.find(agent)
        self._spend(f"cards {agent}", exposure.limits.agent_rate_per_s, exposure.limits.agent_burst)

    def refused(self, knock: Knock, method: str, error: A2AError, call: Call | None) -> None:
        """Record that a request was refused, on the way in or later."""
        self._metrics.count_refusal(error)
        principal = call.principal if call is not None else None
        self._recorder.refused(knock.agent, method, error, principal, knock.peer)

    def _spend(self, key: str, rate_per_s: float, burst: float) -> None:
        wait_s = self._rates.take(key, rate_per_s, burst)
        if wait_s > 0:
            raise A2AError(
                Kind.RATE_LIMITED,
                "too many requests; try again later",
                metadata={"why": key.split(maxsplit=1)[0] + "_rate"},
                headers=(("retry-after", str(max(1, int(wait_s + 0.999)))),),
            )


def call_id(now_s: float) -> str:
    """Return 26 characters that sort by time."""
    number = (int(now_s * 1000) << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
