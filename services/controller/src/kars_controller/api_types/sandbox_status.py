"""The observed state of a KarsSandbox."""

from typing import Literal

from kars_controller.api_types.base import ApiModel, Count
from kars_controller.api_types.runtimes import RuntimeKind
from kars_controller.api_types.status import Digest, Status


class PolicyInForce(ApiModel):
    """The bundle that was compiled for this sandbox, and the one its router enforces."""

    version: Count | None = None
    """Version of the newest bundle."""
    compiled_digest: Digest | None = None
    """Digest of the newest bundle."""
    loaded_digest: Digest | None = None
    """Acknowledged by the router; equal to `compiledDigest` when what is asked for is in force."""
    loaded_version: Count | None = None
    """Version that the router enforces."""


class TokensUsed(ApiModel):
    """Tokens settled by the router."""

    input: Count | None = None
    """Tokens sent to models."""
    output: Count | None = None
    """Tokens received from models."""


class AgentIdentity(ApiModel):
    """The directory's identity of the agent."""

    app_id: str
    """Application id."""
    object_id: str
    """Object id."""
    display_name: str
    """Name for people."""
    created_at: str | None = None
    """When it was made."""


class SandboxStatus(Status):
    """The observed state of one sandbox."""

    phase: (
        Literal[
            "Pending", "Creating", "Running", "Suspended", "Succeeded", "Failed", "Terminating", "Degraded"
        ]
        | None
    ) = None
    """One word for people; programs read the conditions."""
    sandbox_pod: str | None = None
    """The pod."""
    namespace: str | None = None
    """The namespace that the agent runs in."""
    inference_endpoint: str | None = None
    """Where the agent finds its router."""
    runtime_kind: RuntimeKind | None = None
    """Which runtime this was judged for."""
    restart_count: Count | None = None
    """How often the agent was started again."""
    policy: PolicyInForce | None = None
    """The policy that was compiled, and the one in force."""
    tokens_used: TokensUsed | None = None
    """Tokens of all calls."""
    foundry_agent_id: str | None = None
    """The agent's id at the model provider."""
    agent_identity: AgentIdentity | None = None
    """The directory's identity of the agent."""
