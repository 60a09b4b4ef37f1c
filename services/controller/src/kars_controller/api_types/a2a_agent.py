"""A2AAgent: the public card of an agent, and the keys that speak for it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kars_controller.api_types.base import (
    AGE,
    MAX_INT64,
    PHASE,
    ApiModel,
    Column,
    Count32,
    Kind,
    LocalRef,
    NonEmpty,
)
from kars_controller.api_types.published import CelRule
from kars_controller.api_types.status import Digest, NamedObject, Status, Time

Seconds = Annotated[int, Field(ge=0, le=MAX_INT64)]


class SigningKey(ApiModel):
    """One key that signs the agent's messages."""

    kid: Annotated[str, Field(max_length=256)]
    """The key's id; unique among the agent's keys."""
    alg: Literal["EdDSA"]
    """Algorithm of the key."""
    public_key_b64u: Annotated[str, Field(alias="publicKeyB64u", max_length=128)]
    """The Ed25519 public key, base64url without padding."""
    not_after: Seconds | None = None
    """Unix time after which the key counts no more; absent: never."""


class Peer(ApiModel):
    """One agent that this one works with."""

    label: NonEmpty
    """A name for people."""
    kind: Literal["in-cluster", "external"]
    """Whether it is an A2AAgent of this namespace or one outside."""
    agent_ref: LocalRef | None = None
    """An A2AAgent of this namespace."""
    endpoint_url: Annotated[str, Field(max_length=2048)] | None = None
    """Where the external agent is called."""
    pinned_kid: Annotated[str, Field(max_length=256)] | None = None
    """The only key of the external agent that is believed."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "has(self.agentRef) == (self.kind == 'in-cluster')",
            "is required for kind in-cluster, and not allowed otherwise",
            ".agentRef",
        ),
        *(
            CelRule(
                f"has(self.{name}) == (self.kind == 'external')",
                "is required for kind external, and not allowed otherwise",
                f".{name}",
            )
            for name in ("endpointUrl", "pinnedKid")
        ),
    )


class PolicyRefs(ApiModel):
    """Policies that the card names."""

    tool_policy: str | None = None
    """A ToolPolicy of this namespace."""


class Trust(ApiModel):
    """What is asked of whoever calls."""

    require_signed_requests: bool = False
    """Whether a request must be signed."""
    min_signatures_required: Count32 | None = None
    """By how many keys."""
    max_clock_skew_seconds: Seconds | None = None
    """How far the clocks may be apart."""


class A2AAgentSpec(ApiModel):
    """The desired card."""

    endpoint_url: Annotated[str, Field(max_length=2048)]
    """Where the agent is called."""
    production_mode: bool = False
    """Ask for https."""
    display_name: str | None = None
    """The agent's name on the card."""
    description: str | None = None
    """What the card says of it."""
    capabilities: list[str] = Field(default_factory=list)
    """What the card says it can do."""
    signing_keys: Annotated[list[SigningKey], Field(min_length=1, max_length=32)]
    """Keys that speak for the agent."""
    federation: Annotated[list[Peer], Field(max_length=256)] = Field(default_factory=list)
    """Agents that this one works with."""
    policy_refs: PolicyRefs | None = None
    """Policies that the card names."""
    trust: Trust | None = None
    """What is asked of whoever calls."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!self.productionMode || self.endpointUrl.startsWith('https://')",
            "must be an https:// URL when spec.productionMode is true",
            ".endpointUrl",
        ),
        CelRule(
            "self.signingKeys.all(one, self.signingKeys.exists_one(other, other.kid == one.kid))",
            "a kid names one key; it is given twice",
            ".signingKeys",
        ),
    )


class A2AAgentStatus(Status):
    """The card that was published."""

    agent_card_config_map_ref: NamedObject | None = None
    version_hash: Digest | None = None
    last_compiled_at: Time | None = None


A2A_AGENT = Kind(
    name="A2AAgent",
    plural="a2aagents",
    short_names=("a2a",),
    spec=A2AAgentSpec,
    status=A2AAgentStatus,
    columns=(
        Column(name="Endpoint", json_path=".spec.endpointUrl"),
        Column(name="Production", json_path=".spec.productionMode", type="boolean"),
        PHASE,
        AGE,
    ),
    not_served="no gateway publishes agent cards yet; leave it out, agents reach each other by the mesh",
)
