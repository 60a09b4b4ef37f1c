"""EgressApproval: hosts that one sandbox may reach for a while, and why. It ends by itself."""

from typing import Annotated, ClassVar

from pydantic import Field

from kars_controller.api_types.base import AGE, PHASE, ApiModel, Column, Count, Kind
from kars_controller.api_types.published import CelRule, immutable
from kars_controller.api_types.status import Digest, Status, Time

# One line per control character that text for people may hold: tab, line feed, carriage return.
_PRINTABLE = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+$"
_DURATION = r"^P([0-9]{1,9}D)?(T([0-9]{1,9}H)?([0-9]{1,9}M)?([0-9]{1,9}S)?)?$"


class ApprovedHost(ApiModel):
    """One host."""

    host: Annotated[str, Field(min_length=1, max_length=253)]
    """Host name."""
    port: Annotated[int, Field(ge=1, le=65535)] = 443
    """TCP port."""


class EgressApprovalSpec(ApiModel):
    """The grant. It cannot be changed: another grant is another resource, with its own reason and end."""

    sandbox: Annotated[str, Field(min_length=1, max_length=253)]
    """A KarsSandbox of this namespace."""
    hosts: Annotated[list[ApprovedHost], Field(min_length=1, max_length=16)]
    """What may be reached."""
    reason: Annotated[str, Field(min_length=1, max_length=512, pattern=_PRINTABLE)]
    """Why; goes into the audit record."""
    ticket: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Where it was asked for; goes into the audit record."""
    ttl: Annotated[str, Field(max_length=64, pattern=_DURATION)]
    """How long it holds, as ISO 8601 days, hours, minutes and seconds, such as PT4H."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        immutable("an approval cannot be changed; delete it and create another"),
        CelRule(
            "self.ttl.matches('[1-9]') && !self.ttl.endsWith('T')",
            "allowed: a duration above zero, such as PT4H or P1DT12H",
            ".ttl",
        ),
    )


class EgressApprovalStatus(Status):
    """Whether the grant is in force, and until when."""

    effective_at: Time | None = None
    """From when it holds."""
    expires_at: Time | None = None
    """When it ends."""
    merged_digest: Digest | None = None
    host_count: Count | None = None
    """How many hosts it opens."""
    usage_count: Count | None = None
    """How often it was used."""


EGRESS_APPROVAL = Kind(
    name="EgressApproval",
    plural="egressapprovals",
    short_names=("eappr",),
    spec=EgressApprovalSpec,
    status=EgressApprovalStatus,
    columns=(
        Column(name="Sandbox", json_path=".spec.sandbox"),
        PHASE,
        Column(name="Expires", json_path=".status.expiresAt", type="date"),
        Column(name="Hosts", json_path=".status.hostCount", type="integer"),
        AGE,
    ),
    not_served="no egress service takes it yet; no host is reachable, so there is nothing to approve",
)
