"""McpServer: a server of tools that sandboxes may reach through their router."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kars_controller.api_types.base import AGE, PHASE, ApiModel, Column, Kind, OciRef
from kars_controller.api_types.published import CelRule, beside_bundle
from kars_controller.api_types.status import Digest, NamedObject, Status, Time

_INLINE = ("url", "oauth", "productionMode", "scopes", "allowedTools", "displayName")
_PRODUCTION = "!has(self.productionMode) || !self.productionMode"


class OAuth(ApiModel):
    """Who issues the tokens that callers present."""

    issuer: Annotated[str, Field(max_length=2048)]
    """OpenID Connect issuer; its discovery document names the keys."""
    audience: str | None = None
    """The audience that a token must carry."""
    resource: str | None = None
    """The protected resource (RFC 8707)."""
    pkce: Literal["S256"] = "S256"
    """Code challenge method; there is one."""


class AllowedSandboxes(ApiModel):
    """Which sandboxes may refer to this server."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a sandbox must carry, all of them; empty: every sandbox of the namespace."""


class McpServerSpec(ApiModel):
    """The desired server."""

    url: Annotated[str, Field(max_length=2048)] | None = None
    """The server's MCP endpoint."""
    production_mode: bool | None = None
    """Ask for https and tokens of the issuer; absent: no."""
    oauth: OAuth | None = None
    """Who issues the tokens that callers present."""
    scopes: list[str] | None = None
    """Scopes that a token must carry."""
    allowed_tools: list[str] | None = None
    """Tools that pass; absent: those that policy allows."""
    bearer_from_env: str | None = None
    """Name of the router's environment variable that holds the credential for the server."""
    allowed_sandboxes: AllowedSandboxes | None = None
    """Which sandboxes may refer to it; absent: every one of the namespace."""
    display_name: str | None = None
    """A name for people."""
    bundle_ref: OciRef | None = None
    """A signed description instead of the inline one."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        *beside_bundle(*_INLINE),
        CelRule(
            f"{_PRODUCTION} || (has(self.url) && self.url.startsWith('https://'))",
            "must be an https:// URL when spec.productionMode is true",
            ".url",
        ),
        CelRule(
            f"{_PRODUCTION} || has(self.oauth)",
            "is required when spec.productionMode is true",
            ".oauth",
        ),
        CelRule(
            f"{_PRODUCTION} || !has(self.oauth) || self.oauth.issuer != ''",
            "must not be empty when spec.productionMode is true",
            ".oauth.issuer",
        ),
    )


class McpServerStatus(Status):
    """What was found at the server and its issuer."""

    jwks_config_map_ref: NamedObject | None = None
    signing_key_ref: NamedObject | None = None
    bundle_ref_digest: Digest | None = None
    last_probed_at: Time | None = None


MCP_SERVER = Kind(
    name="McpServer",
    plural="mcpservers",
    short_names=("mcp",),
    spec=McpServerSpec,
    status=McpServerStatus,
    columns=(
        Column(name="URL", json_path=".spec.url"),
        Column(name="Production", json_path=".spec.productionMode", type="boolean"),
        PHASE,
        AGE,
    ),
    not_served="no router reaches an MCP server yet; leave it out, give tools in the agent's code",
)
