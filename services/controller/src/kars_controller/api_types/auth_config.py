"""KarsAuthConfig: how mesh peers prove who they are. Cluster-wide, one, named `default`.

On every platform a peer proves the workload identity that the controller issued (`Anonymous` is the name of
that backend: no directory outside is asked). A backend that this platform cannot give is not replaced by a
weaker one: sandboxes that depend on it stay out of the mesh, and the status says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kars_controller.api_types.base import AGE, PHASE, ApiModel, Column, Kind, NonEmpty, Violation, dig
from kars_controller.api_types.published import HTTPS_PATTERN, CelRule, Published
from kars_controller.api_types.status import Status, Time

AUTH_CONFIG_NAME = "default"


class Tenant(ApiModel):
    """The directory tenant."""

    tenant_id: NonEmpty
    """Its id."""
    authority_host: Annotated[str, Published(pattern=HTTPS_PATTERN)] = "https://login.microsoftonline.com/"
    """Where tokens are asked for."""
    service_management_reference: str | None = None
    """Reference that the directory demands of new applications."""


class AgentId(ApiModel):
    """The blueprint that agent identities are made from."""

    blueprint_client_id: NonEmpty
    """Client id of the blueprint."""
    blueprint_object_id: NonEmpty
    """Object id of the blueprint."""
    sponsor_user_object_ids: list[str] = Field(default_factory=list)
    """People who answer for the agents."""


class ControllerIdentity(ApiModel):
    """Whom the controller is in the directory."""

    managed_identity_client_id: NonEmpty
    """Client id."""
    managed_identity_resource_id: NonEmpty
    """Resource id."""
    managed_identity_principal_id: str | None = None
    """Principal id."""
    credential_mode: Literal["ManagedIdentityImds", "WorkloadIdentity"] = "ManagedIdentityImds"
    """Where the controller's credential comes from."""


class DownstreamApi(ApiModel):
    """An API that tokens are asked for."""

    base_url: NonEmpty
    """Where it is."""
    request_app_token: bool = True
    """Whether the token is the application's, not a user's."""
    scopes: Annotated[list[NonEmpty], Field(min_length=1)]
    """What is asked for."""


class FoundryRole(ApiModel):
    """Roles that each agent identity gets on one scope."""

    scope: NonEmpty
    """Resource id."""
    role_definition_ids: list[NonEmpty]
    """The roles."""


class AuthConfigSpec(ApiModel):
    """The desired identity settings."""

    tenant: Tenant
    """The directory tenant."""
    agent_id: AgentId
    """The blueprint of agent identities."""
    controller: ControllerIdentity
    """Whom the controller is in the directory."""
    mesh_auth_backend: Literal["Anonymous", "EntraAgentIdentity"] = "Anonymous"
    """How mesh peers prove themselves: with kars' own identities (Anonymous) or the directory's."""
    mesh_auth_audience: str | None = None
    """Audience of the directory's tokens for the mesh."""
    downstream_apis: dict[str, DownstreamApi] = Field(default_factory=dict)
    """APIs that tokens are asked for, by name."""
    foundry_rbac: list[FoundryRole] = Field(default_factory=list)
    """Roles that each agent identity gets."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!has(self.meshAuthAudience) || self.meshAuthBackend == 'EntraAgentIdentity'",
            "not allowed unless spec.meshAuthBackend is EntraAgentIdentity",
            ".meshAuthAudience",
        ),
    )


class AuthConfigStatus(Status):
    """What of the identity settings is in force."""

    blueprint_fic_count: int | None = None
    blueprint_fic_quota: int | None = None
    last_reconciled_at: Time | None = None


def _rules(spec: Mapping[str, Any]) -> Iterator[Violation]:
    host = dig(spec, "tenant", "authorityHost")
    if isinstance(host, str) and not host.startswith("https://"):
        yield Violation("spec.tenant.authorityHost", f"got {host[:80]!r}, allowed: an https:// URL")
    if spec.get("meshAuthAudience") is not None and spec.get("meshAuthBackend") != "EntraAgentIdentity":
        yield Violation(
            "spec.meshAuthAudience", "not allowed unless spec.meshAuthBackend is EntraAgentIdentity"
        )


def remarks(spec: AuthConfigSpec) -> Iterable[str]:
    """Yield what the spec asks for and this platform does not give."""
    if spec.mesh_auth_backend == "EntraAgentIdentity":
        yield (
            "spec.meshAuthBackend: this platform has no directory to ask; sandboxes with"
            " spec.meshAuth.mode agent-id stay out of the mesh"
        )
    yield "spec.tenant, agentId, controller: no agent identities are made here; they have no effect"
    if spec.downstream_apis:
        yield "spec.downstreamApis: there is no token broker on this platform; no token is issued"
    if spec.foundry_rbac:
        yield "spec.foundryRbac: no roles are assigned on this platform"


AUTH_CONFIG = Kind(
    name="KarsAuthConfig",
    plural="karsauthconfigs",
    short_names=("kac",),
    namespaced=False,
    fixed_name=AUTH_CONFIG_NAME,
    spec=AuthConfigSpec,
    status=AuthConfigStatus,
    columns=(
        Column(name="Tenant", json_path=".spec.tenant.tenantId"),
        Column(name="Blueprint", json_path=".spec.agentId.blueprintClientId"),
        PHASE,
        Column(name="MeshAuth", json_path=".spec.meshAuthBackend"),
        AGE,
    ),
    rules=_rules,
    remarks=remarks,
)
