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
    Kind,
    LocalRef,
    NonEmpty,
    OciRef,
)
from kars_controller.api_types.published import CelRule, Published
from kars_controller.api_types.runtimes import Runtime
from kars_controller.api_types.sandbox_rules import normalise, remarks, rules
from kars_controller.api_types.sandbox_status import SandboxStatus

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
    """How strong: standard has the default system-call filter, enhanced a strict one, confidential
    needs a hardware enclave.
    """
    seccomp_profile: str = "kars-strict"
    """Name of the system-call filter, or RuntimeDefault."""
    selinux_context: str = ""
    """SELinux type of the container; empty: the platform's."""
    read_only_root_filesystem: bool = True
    """Whether the root is read-only."""
    run_as_non_root: bool = True
    """Whether a user id other than 0 is demanded."""
    allow_privilege_escalation: bool = False
    """Whether a program may gain more rights than its parent."""
    writable_paths: list[str] = Field(default_factory=lambda: ["/sandbox", "/tmp"])  # noqa: S108 - inside the sandbox
    """Paths that the agent may write to."""


class Agent(ApiModel):
    """Instructions for runtimes that take them."""

    instructions: str | None = None
    """What the agent is told to be."""
    tools: list[str] | None = None
    """Names of the tools that the runtime brings."""
    file_ids: list[str] | None = None
    """Files of the model provider that the agent may use."""


class Governance(ApiModel):
    """Which tool policy governs the agent, and whom it trusts."""

    enabled: bool = False
    """Whether a tool policy governs the agent."""
    tool_policy_ref: LocalRef | None = None
    """A ToolPolicy of this namespace."""
    trust_threshold: Annotated[int, Field(ge=0, le=1000)] = 500
    """The least trust score of a mesh peer that may write to the agent."""
    trusted_peers: (
        Annotated[str, AfterValidator(_trusted_peers), Published(pattern=_PEERS_PATTERN)] | None
    ) = None
    """Mesh peers, by name, namespace/name or SPIFFE id, separated by commas; each has to list the other."""
    registry_mode: Literal["local", "global"] = "local"
    """Whether peers of other trust domains are reachable (global) or not (local)."""
    mcp_server_ref: LocalRef | None = None
    """One McpServer of this namespace; use mcpServerRefs instead."""
    mcp_server_refs: Annotated[list[LocalRef], Field(max_length=8)] = Field(default_factory=list)
    """McpServers of this namespace that the agent may use."""

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
    """With which identity: what there is (auto), the directory's (agent-id), none of the directory's
    (anonymous).
    """
    custom_security_attributes: dict[str, str] = Field(default_factory=dict)
    """Attributes of the directory's identity."""


class AzureService(ApiModel):
    """An Azure service that the agent is meant to use."""

    service: NonEmpty
    """Kind of the service."""
    account: str | None = None
    """Its account."""
    permissions: list[str] | None = None
    """What the agent may do there."""


class Endpoint(ApiModel):
    """One allowed host."""

    host: NonEmpty
    """Host name."""
    port: Annotated[int, Field(ge=1, le=65535)] = 443
    """TCP port."""
    name: str | None = None
    """A name for people."""


class NetworkPolicy(ApiModel):
    """What the agent may reach besides its router."""

    default_deny: bool = True
    """Whether what is not allowed is denied."""
    egress_mode: Literal["Strict", "Learn"] = "Learn"
    """Strict denies what is not listed; Learn records it for a person to decide."""
    allowed_endpoints: list[Endpoint] | None = None
    """Hosts that the agent may reach."""
    allowlist_ref: OciRef | None = None
    """A signed list of hosts; when it verifies, it counts instead of allowedEndpoints."""
    learn_egress: bool | None = None
    """An older name for egressMode Learn."""
    approval_required: bool | None = None
    """Whether a person must approve a host that is not listed."""


class Resources(ApiModel):
    """Requests and limits of the agent's container."""

    requests: dict[str, Quantity] = Field(default_factory=dict)
    """What is reserved for the agent."""
    limits: dict[str, Quantity] = Field(default_factory=dict)
    """What the agent may use at most."""


class SandboxSpec(ApiModel):
    """The desired state of one sandbox."""

    runtime: Runtime
    """What runs."""
    sandbox: Annotated[Isolation, Published(default={})]
    """How it is confined."""
    inference_ref: LocalRef
    """The InferencePolicy of this namespace that says which models, and how many tokens."""
    memory_ref: LocalRef | None = None
    """A KarsMemory of this namespace."""
    agent: Agent | None = None
    """Instructions for runtimes that take them."""
    governance: Governance | None = None
    """Which tool policy governs the agent; absent: kars-default of kars-system."""
    azure_services: list[AzureService] | None = None
    """Azure services that the agent is meant to use."""
    network_policy: NetworkPolicy | None = None
    """What the agent may reach besides its router."""
    resources: Resources | None = None
    """Requests and limits; absent: 500m and 1Gi, up to 2 and 4Gi."""
    suspended: bool = False
    """Whether the agent is stopped; what it keeps stays."""
    a2a: dict[str, Any] | None = Field(default=None, alias="a2a")
    """How the agent is called from outside."""
    upstream_compatibility: dict[str, Any] | None = None
    """Cooperation with sandboxes of other projects."""
    mesh_auth: MeshAuth | None = None
    """How the agent proves itself in the mesh."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "self.runtime.kind != 'BYO' || !has(self.agent)",
            "not allowed when spec.runtime.kind is BYO",
            ".agent",
        ),
    )


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
