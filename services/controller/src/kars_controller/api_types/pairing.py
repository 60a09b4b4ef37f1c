"""KarsPairing: a one-time invitation for a peer outside, with slots, a token budget and an end."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from kars_controller.api_types.base import AGE, MAX_INT64, PHASE, ApiModel, Column, Count, Kind
from kars_controller.api_types.published import Published
from kars_controller.api_types.status import Status, Time

_HASH = re.compile(r"[0-9a-f]{64}")


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise PydanticCustomError(
            "hash", "allowed: the SHA-256 of the one-time secret, 64 lower-case hex characters"
        )
    return text


def _time(text: str) -> str:
    try:
        parse_time(text)
    except ValueError:
        raise PydanticCustomError(
            "time", "allowed: a time with its zone, such as 2027-01-31T12:00:00Z"
        ) from None
    return text


def parse_time(text: str) -> datetime:
    """Return an RFC 3339 time in UTC.

    Raises:
        ValueError: it is none, or has no zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or "T" not in text.upper():
        raise ValueError("no zone")
    return moment.astimezone(UTC)


Capability = Literal["offload", "handoff"]
_CAPABILITIES: tuple[Capability, ...] = ("offload", "handoff")


class PairingSpec(ApiModel):
    """The invitation."""

    token_hash: Annotated[str, AfterValidator(_hash), Published(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the one-time secret, in hex."""
    expires_at: Annotated[str, AfterValidator(_time), Published(format="date-time")]
    """When the invitation and what came of it ends."""
    slots_max: Annotated[int, Field(ge=1, le=MAX_INT64)] = 1
    """How many tasks may run at once."""
    token_budget: Count = 500_000
    """How many tokens the peer may use."""
    capabilities: list[Capability] = Field(default_factory=lambda: list(_CAPABILITIES))
    """What the peer may ask for."""
    display_name: str | None = None
    """A name for people."""
    model: str | None = None
    """The model that tasks use."""
    isolation: Literal["standard", "enhanced", "confidential"] | None = None
    """How the sandboxes of tasks are confined."""


class PairingStatus(Status):
    """Who took the invitation, and what was used of it."""

    phase: Literal["PendingPairing", "Active", "Expired", "Revoked", "Degraded"] | None = None
    """One word for people; programs read the conditions."""
    bound_peer: str | None = None
    """The peer that took it."""
    bound_amid: str | None = None
    bound_pubkey_ed25519: str | None = None
    paired_at: Time | None = None
    slots_used: Count | None = None
    """Tasks that run."""
    tokens_used: Count | None = None
    """Tokens that were used."""
    last_offload_at: Time | None = None
    offloads_completed: Count | None = None
    offloads_failed: Count | None = None
    active_sandbox: str | None = None
    last_reconciled_at: Time | None = None


def remarks(_spec: PairingSpec) -> Iterable[str]:
    """Yield what the spec asks for and this platform does not give."""
    yield "KarsPairing: pairing is not served yet; nobody can use this invitation and no offload starts"


KARS_PAIRING = Kind(
    name="KarsPairing",
    plural="karspairings",
    short_names=("cp",),
    spec=PairingSpec,
    status=PairingStatus,
    columns=(
        PHASE,
        Column(name="Peer", json_path=".status.boundPeer"),
        Column(name="Slots", json_path=".status.slotsUsed", type="integer"),
        Column(name="Budget", json_path=".spec.tokenBudget", type="integer"),
        Column(name="Ready", json_path='.status.conditions[?(@.type=="Ready")].status'),
        Column(name="Expires", json_path=".spec.expiresAt", type="date"),
        AGE,
    ),
    remarks=remarks,
)
