"""KarsSandbox: one agent in its sandbox."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from kars_controller.api_types import peers
from kars_controller.api_types.base import (
    AGE,
    PHASE,
    ApiModel,
    Column,
    Count,
    Kind,
    LocalRef,
    NonEmpty,
    OciRef,
)
from kars_controller.api_types.published import CelRule, Published
from kars_controller.api_types.runtimes import Runtime, RuntimeKind
from kars_controller.api_types.sandbox_rules import normalise, remarks, rules
from kars_controller.api_types.status import Digest, Status

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")


def _quantity(value: str | float) -> str | float:
    if not _QUANTITY.fullmatch(str(value)):
        raise PydanticCustomError("quantity", "allowed: a Kubernetes quantity such as 500m, 2, 512Mi or 4Gi")
    return value


def _trusted_peers(text: str) -> str:
    for entry in peers.entries(text):
        if peers.parse_entry(entry) is None:
            raise PydanticCustomError(
                "trusted_peers",
                "allowed: names separated by commas, each <name> (of this namespace), <namespace>/<name> or a"
                " SPIFFE id of a sandbox",
            )
    return text


Quantity = Annotated[
    str | int | float,
    AfterValidator(_quantity),
    # Text or number (YAML writes `cpu: 0.5`): a structural schema has no type for both, so it limits each
    # and excludes the rest one by one.
    Published(
        instead=True,
        x__kubernetes__preserve__unknown__fields=True,
        pattern=f"^({_QUANTITY.pattern})$",
        minimum=0,
        maxItems=0,
        maxProperties=0,
        **{"not": {"enum": [True, False, [], {}]}},
    ),
]
_PEER = (
    r"(spiffe://[^,\s]+|(a2a-agent/)?([a-z0-9]([a-z0-9-]*[a-z0-9])?/)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(:[^,]*)?)"
)
_PEERS_PATTERN = rf"^\s*({_PEER}?\s*(,\s*{_PEER}?\s*)*)$"


class Isolation(ApiModel):
    """How the agent's container is confined."""

    isolation: Literal["standard", "enhanced", "confidential"] = "enhanced"
    seccomp_profile: str = "kars-strict"
    selinux_context: str = ""
    read_only_root_filesystem: bool = True
    run_as_non_root: bool = True
    allow_privilege_escalation: bool = False
    writable_paths: list[str] = Field(default_factory=lambda: ["/sandbox", "/tmp"])  # noqa: S108 - inside the sandbox


class Agent(ApiModel):
    """Instructions for runtimes that take them."""

    instructions: str | None = None
    tools: list[str] | None = None
    file_ids: list[str] | None = None


class Governance(ApiModel):
    """Which tool policy governs the agent, and whom it trusts."""

    enabled: bool = False
    tool_policy_ref: LocalRef | None = None
    trust_threshold: Annotated[int, Field(ge=0, le=1000)] = 500
    trusted_peers: (
        Annotated[str, AfterValidator(_trusted_peers), Published(pattern=_PEERS_PATTERN)] | None
    ) = None
    registry_mode: Literal["local", "global"] = "local"
    mcp_server_ref: LocalRef | None = None
    mcp_server_refs: Annotated[list[LocalRef], Field(max_length=8)] = Field(default_factory=list)

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!self.enabled || (has(self.toolPolicyRef) && self.toolPolicyRef.name != '')",
            "is required when spec.governance.enabled is true",
            ".toolPolicyRef.name",
        ),
        CelRule(
            "!has(self.mcpServerRef) || self.mcpServerRefs.size() == 0",
            "not allowed beside mcpServerRefs; use mcpServerRefs only",
            ".mcpServerRef",
        ),
        CelRule(
            "self.mcpServerRefs.all(one, self.mcpServerRefs.exists_one(other, other.name == one.name))",
            "names must be unique",
            ".mcpServerRefs",
        ),
    )


class MeshAuth(ApiModel):
    """How the agent proves itself in the mesh."""

    mode: Literal["auto", "agent-id", "anonymous"] = "auto"
    custom_security_attributes: dict[str, str] = Field(default_factory=dict)


class AzureService(ApiModel):
    """An Azure service that the agent is meant to use."""

    service: NonEmpty
    account: str | None = None
    permissions: list[str] | None = None


class Endpoint(ApiModel):
    """One allowed host."""

    host: NonEmpty
    port: Annotated[int, Field(ge=1, le=65535)] = 443
    name: str | None = None


class NetworkPolicy(ApiModel):
    """What the agent may reach besides its router."""

    default_deny: bool = True
    egress_mode: Literal["Strict", "Learn"] = "Learn"
    allowed_endpoints: list[Endpoint] | None = None
    allowlist_ref: OciRef | None = None
    learn_egress: bool | None = None
    approval_required: bool | None = None


class Resources(ApiModel):
    """Requests and limits of the agent's container."""

    requests: dict[str, Quantity] = Field(default_factory=dict)
    limits: dict[str, Quantity] = Field(default_factory=dict)


class SandboxSpec(ApiModel):
    """The desired state of one sandbox."""

    runtime: Runtime
    sandbox: Annotated[Isolation, Published(default={})]
    inference_ref: LocalRef
    memory_ref: LocalRef | None = None
    agent: Agent | None = None
    governance: Governance | None = None
    azure_services: list[AzureService] | None = None
    network_policy: NetworkPolicy | None = None
    resources: Resources | None = None
    suspended: bool = False
    a2a: dict[str, Any] | None = Field(default=None, alias="a2a")
    upstream_compatibility: dict[str, Any] | None = None
    mesh_auth: MeshAuth | None = None

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "self.runtime.kind != 'BYO' || !has(self.agent)",
            "not allowed when spec.runtime.kind is BYO",
            ".agent",
        ),
    )


class PolicyInForce(ApiModel):
    """The bundle that was compiled for this sandbox, and the one its router enforces."""

    version: Count | None = None
    compiled_digest: Digest | None = None
    loaded_digest: Digest | None = None
    """Acknowledged by the router; equal to `compiledDigest` when what is asked for is in force."""
    loaded_version: Count | None = None


class TokensUsed(ApiModel):
    """Tokens settled by the router."""

    input: Count | None = None
    output: Count | None = None


class AgentIdentity(ApiModel):
    """The directory's identity of the agent."""

    app_id: str
    object_id: str
    display_name: str
    created_at: str | None = None


class SandboxStatus(Status):
    """The observed state of one sandbox."""

    phase: (
        Literal[
            "Pending", "Creating", "Running", "Suspended", "Succeeded", "Failed", "Terminating", "Degraded"
        ]
        | None
    ) = None
    sandbox_pod: str | None = None
    namespace: str | None = None
    """The namespace that the agent runs in."""
    inference_endpoint: str | None = None
    """Where the agent finds its router."""
    runtime_kind: RuntimeKind | None = None
    restart_count: Count | None = None
    policy: PolicyInForce | None = None
    tokens_used: TokensUsed | None = None
    foundry_agent_id: str | None = None
    agent_identity: AgentIdentity | None = None


KARS_SANDBOX = Kind(
    name="KarsSandbox",
    plural="karssandboxes",
    short_names=("cs",),
    max_name_length=58,  # `kars-<name>` must be a namespace name
    spec=SandboxSpec,
    status=SandboxStatus,
    columns=(
        PHASE,
        Column(name="Runtime", json_path=".spec.runtime.kind"),
        Column(name="InferencePolicy", json_path=".spec.inferenceRef.name"),
        Column(name="Isolation", json_path=".spec.sandbox.isolation"),
        Column(
            name="Allowlist",
            json_path='.status.conditions[?(@.type=="AllowlistAuthoritative")].status',
            priority=1,
        ),
        AGE,
    ),
    normalise=normalise,
    rules=rules,
    remarks=remarks,
)
