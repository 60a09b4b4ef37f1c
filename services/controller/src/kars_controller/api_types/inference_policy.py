"""InferencePolicy: which models, how many tokens, which content."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from kars_controller.api_types.base import (
    AGE,
    PHASE,
    ApiModel,
    Column,
    Count,
    Kind,
    NonEmpty,
    OciRef,
    Violation,
    dig,
)
from kars_controller.api_types.published import CelRule, beside_bundle
from kars_controller.api_types.status import Digest, NamedObject, Status, Time
from kars_controller.raw import Raw

SeverityName = Literal["Safe", "Low", "Medium", "High"]
_INLINE = ("tokenBudget", "contentSafety", "modelPreference", "displayName")


class AppliesTo(ApiModel):
    """Descriptive; a sandbox is bound by its own `inferenceRef`."""

    sandbox_name: str | None = None
    """For people."""
    sandbox_match_labels: dict[str, str] = Field(default_factory=dict)
    """For people."""
    action: Literal["chat", "responses", "image", "embeddings", "*"] | None = None
    """For people: kind of call."""


class TokenBudget(ApiModel):
    """Tokens, input plus output; 0 and absent mean no limit."""

    per_request_tokens: Count | None = None
    """Of one call."""
    daily_tokens: Count | None = None
    """Of one day, UTC."""
    monthly_tokens: Count | None = None
    """Of one calendar month, UTC."""

    cel: ClassVar[tuple[CelRule, ...]] = tuple(
        CelRule(
            f"!has(self.monthlyTokens) || !has(self.{part}) || self.monthlyTokens >= self.{part}",
            f"allowed: at least {part}, or leave it out",
            ".monthlyTokens",
        )
        for part in ("dailyTokens", "perRequestTokens")
    )


class ContentSafety(ApiModel):
    """Highest severity that passes."""

    hate: SeverityName | None = None
    """Highest severity of hate that passes."""
    self_harm: SeverityName | None = None
    """Highest severity of self-harm that passes."""
    sexual: SeverityName | None = None
    """Highest severity of sexual content that passes."""
    violence: SeverityName | None = None
    """Highest severity of violence that passes."""
    require_prompt_shields: bool | None = None
    """Whether prompts are checked for injection."""


class Model(ApiModel):
    """One model of one provider."""

    provider: NonEmpty
    """Name of a configured provider."""
    deployment: NonEmpty
    """The model's name there."""


class ModelPreference(ApiModel):
    """The model to use, and those to fall back to, in order."""

    primary: Model
    """The model to use."""
    fallback: list[Model] = Field(default_factory=list)
    """Models to use when it fails, in order."""


class InferencePolicySpec(ApiModel):
    """The desired inference policy."""

    applies_to: AppliesTo
    """Whom the policy is meant for."""
    token_budget: TokenBudget | None = None
    """How many tokens."""
    content_safety: ContentSafety | None = None
    """Which content passes."""
    model_preference: ModelPreference | None = None
    """Which models."""
    display_name: str | None = None
    """A name for people."""
    bundle_ref: OciRef | None = None
    """A signed policy instead of the fields above."""

    cel: ClassVar[tuple[CelRule, ...]] = beside_bundle(*_INLINE)


class InferencePolicyStatus(Status):
    """What was compiled, and what routers enforce."""

    profile_config_map_ref: NamedObject | None = None
    version_hash: Digest | None = None
    """Hash of the policy's content."""
    compiled_digest: Digest | None = None
    """Digest of what was compiled."""
    loaded_digest: Digest | None = None
    """The digest that every running sandbox of this policy enforces."""
    bundle_ref_digest: Digest | None = None
    last_compiled_at: Time | None = None


def _rules(spec: Mapping[str, Any]) -> Iterator[Violation]:
    if spec.get("bundleRef") is not None:
        for name in _INLINE:
            if spec.get(name) is not None:
                yield Violation(f"spec.{name}", "not allowed beside spec.bundleRef; keep one of them")
    monthly = dig(spec, "tokenBudget", "monthlyTokens")
    for name in ("dailyTokens", "perRequestTokens"):
        part = dig(spec, "tokenBudget", name)
        if _is_count(monthly) and _is_count(part) and monthly < part:
            yield Violation(
                "spec.tokenBudget.monthlyTokens",
                f"got {monthly}, allowed: at least {name} ({part}), or leave it out",
            )


def _is_count(value: Raw) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _remarks(spec: InferencePolicySpec) -> Iterable[str]:
    if spec.bundle_ref is not None:
        yield "spec.bundleRef: signed bundles are not fetched yet; sandboxes that use it will not start"
    elif spec.model_preference is None:
        yield "spec.modelPreference is not set: sandboxes that use this policy will not start"


INFERENCE_POLICY = Kind(
    name="InferencePolicy",
    plural="inferencepolicies",
    short_names=("ip",),
    spec=InferencePolicySpec,
    status=InferencePolicyStatus,
    columns=(
        Column(name="Sandbox", json_path=".spec.appliesTo.sandboxName"),
        Column(name="DailyTokens", json_path=".spec.tokenBudget.dailyTokens", type="integer"),
        PHASE,
        AGE,
    ),
    rules=_rules,
    remarks=_remarks,
)
