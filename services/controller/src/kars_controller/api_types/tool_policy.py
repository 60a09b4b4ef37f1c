"""ToolPolicy: what an agent may do, how often, and what a person must approve."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kars_controller import profiles
from kars_controller.api_types.base import (
    AGE,
    PHASE,
    ApiModel,
    Column,
    Count32,
    Kind,
    OciRef,
    RawSpec,
    Violation,
    dig,
)
from kars_controller.api_types.published import CelRule, Published
from kars_controller.api_types.status import Digest, Status, Time
from kars_controller.profiles import durations


class AppliesTo(ApiModel):
    """Which tool the limits below are about; a sandbox is bound by its own `toolPolicyRef`."""

    sandbox_match_labels: dict[str, str]
    """For people; may be empty, but not left out."""
    tool: str | None = None
    """The tool that rateLimit and approval are about; absent: all."""
    mcp_server: str | None = None
    """The server whose tool it is."""


class AgtProfile(ApiModel):
    """The rules, as YAML text or as a signed artefact."""

    inline: str | None = None
    """The rules, as YAML."""
    bundle_ref: OciRef | None = None
    """A signed artefact with the rules."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!has(self.inline) || !has(self.bundleRef)",
            "not allowed beside inline; keep one of them",
            ".bundleRef",
        ),
    )


class Commerce(ApiModel):
    """Spending limits."""

    daily_cap: str | None = None
    """Of one day."""
    monthly_cap: str | None = None
    """Of one month."""
    per_transfer_cap: str | None = None
    """Of one payment."""
    counterparty_allowlist: list[str] = Field(default_factory=list)
    """Who may be paid."""


class RateLimit(ApiModel):
    """Calls of the tool: `rps` a second on average, `burst` at once (absent: rps x window seconds)."""

    rps: Count32 | None = None
    """Calls a second, on average."""
    burst: Count32 | None = None
    """Calls at once."""
    window: Annotated[str, Published(pattern=durations.PATTERN)] | None = None
    """Over which time the average is taken: digits with s, m or h, such as 60s."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!has(self.burst) || (has(self.rps) && self.rps > 0)",
            "is required beside burst, and at least 1",
            ".rps",
        ),
        CelRule(
            "!has(self.burst) || self.burst > 0",
            "allowed: at least 1 (with 0 no call could ever pass)",
            ".burst",
        ),
    )


class Approval(ApiModel):
    """When an operator must approve a call of the tool."""

    mode: Literal["never", "always", "aboveThreshold"] | None = None
    """When."""
    threshold: str | None = None
    """Above which amount, for aboveThreshold."""
    channel: str | None = None
    """Shown to approvers."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!has(self.mode) || self.mode != 'aboveThreshold'"
            " || (has(self.threshold) && self.threshold != '')",
            "is required when spec.approval.mode is aboveThreshold",
            ".threshold",
        ),
    )


class ToolPolicySpec(ApiModel):
    """The desired tool policy."""

    applies_to: AppliesTo
    """What the policy is about."""
    agt_profile: AgtProfile | None = None
    """Which actions are allowed, denied, or need a person."""
    commerce: Commerce | None = None
    """Spending limits."""
    rate_limit: RateLimit | None = None
    """How often the tool may be called."""
    approval: Approval | None = None
    """Whether a person must approve."""
    display_name: str | None = None
    """A name for people."""


class ToolPolicyStatus(Status):
    """What was compiled, and what routers enforce."""

    version_hash: Digest | None = None
    agt_profile_digest: Digest | None = None
    agt_profile_bundle_digest: Digest | None = None
    loaded_digest: Digest | None = None
    """The digest that every running sandbox of this policy enforces."""
    last_compiled_at: Time | None = None


def _normalise(spec: RawSpec, warnings: list[str]) -> RawSpec:
    if dig(spec, "appliesTo", "sandboxMatchLabels") == {}:
        warnings.append("spec.appliesTo.sandboxMatchLabels is empty: sandboxes name their policy themselves")
    return spec


def _rules(spec: Mapping[str, Any]) -> Iterator[Violation]:
    applies_to = spec.get("appliesTo")
    if isinstance(applies_to, Mapping) and applies_to.get("sandboxMatchLabels") is None:
        yield Violation("spec.appliesTo.sandboxMatchLabels", "is required: at least one label")
    profile = spec.get("agtProfile")
    if isinstance(profile, Mapping):
        yield from _profile_rules(profile)
    window = dig(spec, "rateLimit", "window")
    if isinstance(window, str) and durations.parse_ms(window) is None:
        yield Violation(
            "spec.rateLimit.window", f"got {window!r}, allowed: digits with s, m or h, such as 60s"
        )
    rps, burst = dig(spec, "rateLimit", "rps"), dig(spec, "rateLimit", "burst")
    if burst is not None and not rps:
        yield Violation("spec.rateLimit.rps", "is required beside burst, and at least 1")
    if burst == 0:
        yield Violation("spec.rateLimit.burst", "got 0, allowed: at least 1 (with 0 no call could ever pass)")
    if dig(spec, "approval", "mode") == "aboveThreshold" and not dig(spec, "approval", "threshold"):
        yield Violation("spec.approval.threshold", "is required when spec.approval.mode is aboveThreshold")


def _profile_rules(profile: Mapping[str, Any]) -> Iterator[Violation]:
    if profile.get("inline") is not None and profile.get("bundleRef") is not None:
        yield Violation("spec.agtProfile.bundleRef", "not allowed beside inline; keep one of them")
    inline = profile.get("inline")
    if isinstance(inline, str) and inline.strip():
        for problem in profiles.problems(inline):
            yield Violation(f"spec.agtProfile.inline{problem.path}", problem.description)


def _remarks(spec: ToolPolicySpec) -> Iterable[str]:
    if spec.commerce is not None:
        yield "spec.commerce: payments do not pass the router yet; the caps have no effect"
    if spec.agt_profile is not None and spec.agt_profile.bundle_ref is not None:
        yield "spec.agtProfile.bundleRef: signed bundles are not fetched yet; its users will not start"
    elif spec.agt_profile is None or not (spec.agt_profile.inline or "").strip():
        yield "spec.agtProfile is not set: sandboxes that use this policy will not start"
    elif spec.agt_profile.inline is not None:
        yield from profiles.parse(spec.agt_profile.inline).remarks
    if spec.approval is not None and spec.approval.mode == "aboveThreshold":
        yield "spec.approval.mode aboveThreshold: amounts are not visible yet, so every call asks"
    if spec.approval is not None and spec.approval.channel:
        yield "spec.approval.channel: shown to approvers; nothing is sent there"
    if spec.applies_to.mcp_server:
        yield "spec.appliesTo.mcpServer: there is no MCP gateway yet; no server is reachable"


TOOL_POLICY = Kind(
    name="ToolPolicy",
    plural="toolpolicies",
    short_names=("tp",),
    spec=ToolPolicySpec,
    status=ToolPolicyStatus,
    columns=(
        Column(name="Tool", json_path=".spec.appliesTo.tool"),
        Column(name="DailyCap", json_path=".spec.commerce.dailyCap"),
        PHASE,
        AGE,
    ),
    normalise=_normalise,
    rules=_rules,
    remarks=_remarks,
)
