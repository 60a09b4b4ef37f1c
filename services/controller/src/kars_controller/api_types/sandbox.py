"""KarsSandbox: one agent in its sandbox."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from kars_controller.api_types import peers
from kars_controller.api_types.base import AGE, PHASE, ApiModel, Column, Kind, LocalRef, NonEmpty, OciRef
from kars_controller.api_types.runtimes import Runtime
from kars_controller.api_types.sandbox_rules import normalise, remarks, rules

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


Quantity = Annotated[str | int | float, AfterValidator(_quantity)]


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
    trusted_peers: Annotated[str, AfterValidator(_trusted_peers)] | None = None
    registry_mode: Literal["local", "global"] = "local"
    mcp_server_ref: LocalRef | None = None
    mcp_server_refs: Annotated[list[LocalRef], Field(max_length=8)] = Field(default_factory=list)


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
    sandbox: Isolation
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


KARS_SANDBOX = Kind(
    name="KarsSandbox",
    plural="karssandboxes",
    short_names=("cs",),
    max_name_length=58,  # `kars-<name>` must be a namespace name
    spec=SandboxSpec,
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
