"""The content-safety floor: the provider's annotations against the policy's ceilings.

Reads prompt annotations and the annotations of every choice, in whole answers,
stream events and error bodies. What it cannot read counts as too severe: a
control that is not understood is not skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kars.policy.v1 import policy_pb2

from kars_router.pipeline.verdicts import DecidedBy, Decision, Deny

_LEVELS = {"safe": 1, "low": 2, "medium": 3, "high": 4}
_NAMES = {number: name for name, number in _LEVELS.items()}
# Azure's older numeric scale.
_NUMERIC = {0: 1, 2: 2, 4: 3, 6: 4}
_CATEGORIES = ("hate", "self_harm", "sexual", "violence")
_SHIELDS = ("jailbreak", "indirect_attack")


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyFloor:
    """Compiled `ContentSafety`; a ceiling of 0 does not limit."""

    ceilings: tuple[tuple[str, int], ...]
    require_shields: bool

    @classmethod
    def compile(cls, rules: policy_pb2.ContentSafety) -> "SafetyFloor":
        """Compile the policy's ceilings."""
        values = (rules.hate, rules.self_harm, rules.sexual, rules.violence)
        ceilings = tuple((name, int(value)) for name, value in zip(_CATEGORIES, values, strict=True) if value)
        return cls(ceilings=ceilings, require_shields=rules.require_prompt_shields)

    @property
    def active(self) -> bool:
        """False when the floor lets everything pass."""
        return bool(self.ceilings) or self.require_shields

    def check(self, document: dict[str, Any]) -> Deny | None:
        """Return the denial for the first annotation above its ceiling, if any."""
        for annotations in _annotations(document):
            if not isinstance(annotations, dict):
                return _exceeded("annotations", "unreadable", "readable")
            for category, ceiling in self.ceilings:
                severity = _severity(annotations.get(category))
                if severity > ceiling:
                    return _exceeded(category, _NAMES.get(severity, "unreadable"), _NAMES[ceiling])
            if self.require_shields:
                for shield in _SHIELDS:
                    result = annotations.get(shield)
                    if isinstance(result, dict) and (result.get("detected") or result.get("filtered")):
                        return _exceeded(shield, "detected", "none")
        return None

    def shields_reported(self, document: dict[str, Any]) -> bool:
        """Tell whether this document carries prompt-shield results."""
        return any(
            isinstance(annotations, dict) and isinstance(annotations.get("jailbreak"), dict)
            for annotations in _prompt_annotations(document)
        )


def shields_missing() -> Deny:
    """Return the denial for an answer without the prompt-shield results that policy requires."""
    return Deny(
        status=403,
        error_type="content_policy_violation",
        code="inference_policy_prompt_shields_required",
        message="the policy requires prompt shields and the provider reported none",
        decided_by=DecidedBy.INFERENCE_POLICY,
    )


def _exceeded(category: str, observed: str, ceiling: str) -> Deny:
    return Deny(
        status=403,
        error_type="content_policy_violation",
        code="inference_policy_content_safety_exceeded",
        message=f"content safety: {category} is {observed}, the policy's ceiling is {ceiling}",
        decision=Decision.BLOCKED,
        decided_by=DecidedBy.INFERENCE_POLICY,
    )


def _prompt_annotations(document: dict[str, Any]) -> Iterator[object]:
    for name in ("prompt_filter_results", "prompt_annotations"):
        results = document.get(name)
        if results is None:
            continue
        for result in results if isinstance(results, list) else [results]:
            found = result.get("content_filter_results") if isinstance(result, dict) else result
            if found is not None:
                yield found


def _annotations(document: dict[str, Any]) -> Iterator[object]:
    yield from _prompt_annotations(document)
    choices = document.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("content_filter_results") is not None:
            yield choice["content_filter_results"]
    error = document.get("error")
    inner = error.get("innererror") if isinstance(error, dict) else None
    if isinstance(inner, dict) and inner.get("content_filter_result") is not None:
        yield inner["content_filter_result"]


def _severity(result: object) -> int:
    if result is None:
        return 0
    if not isinstance(result, dict):
        return 5
    severity = result.get("severity")
    if isinstance(severity, str):
        return _LEVELS.get(severity.lower(), 5)
    if isinstance(severity, int) and not isinstance(severity, bool):
        return _NUMERIC.get(severity, 5)
    return 4 if result.get("filtered") is not False else 1
