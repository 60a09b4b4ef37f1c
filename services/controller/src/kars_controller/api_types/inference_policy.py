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
    sandbox_match_labels: dict[str, str] = Field(default_factory=dict)
    action: Literal["chat", "responses", "image", "embeddings", "*"] | None = None


class TokenBudget(ApiModel):
    """Tokens, input plus output; 0 and absent mean no limit."""

    per_request_tokens: Count | None = None
    daily_tokens: Count | None = None
    monthly_tokens: Count | None = None

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
    self_harm: SeverityName | None = None
    sexual: SeverityName | None = None
    violence: SeverityName | None = None
    require_prompt_shields: bool | None = None


class Model(ApiModel):
    """One model of one provider."""

    provider: NonEmpty
    deployment: NonEmpty


class ModelPreference(ApiModel):
    """The model to use, and those to fall back to, in order."""

    primary: Model
    fallback: list[Model] = Field(default_factory=list)


class InferencePolicySpec(ApiModel):
    """The desired inference policy."""

    applies_to: AppliesTo
    token_budget: TokenBudget | None = None
    content_safety: ContentSafety | None = None
    model_preference: ModelPreference | None = None
    display_name: str | None = None
    bundle_ref: OciRef | None = None

    cel: ClassVar[tuple[CelRule, ...]] = beside_bundle(*_INLINE)


class InferencePolicyStatus(Status):
    """What was compiled, and what routers enforce."""

    profile_config_map_ref: NamedObject | None = None
    version_hash: Digest | None = None
    compiled_digest: Digest | None = None
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
