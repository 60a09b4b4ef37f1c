"""KarsEval: a corpus of attacks that is replayed against a sandbox, once or on a schedule."""

from typing import Annotated, ClassVar

from pydantic import Field

from kars_controller.api_types.base import AGE, PHASE, ApiModel, Column, Count, Kind, LocalRef, OciRef
from kars_controller.api_types.published import CelRule
from kars_controller.api_types.status import Digest, NamedObject, Status, Time

_CRON = r"^\s*\S+(\s+\S+){4}\s*$"


class Corpus(ApiModel):
    """The cases: exactly one of these."""

    builtin: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """The name of a corpus that kars brings along."""
    bundle_ref: OciRef | None = None
    """A signed corpus."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule("has(self.builtin) != has(self.bundleRef)", "allowed: exactly one of builtin, bundleRef"),
    )


class EvalSpec(ApiModel):
    """The desired evaluation."""

    target_sandbox_ref: LocalRef
    """The sandbox whose router is asked."""
    corpus: Corpus
    """Which cases."""
    schedule: Annotated[str, Field(min_length=1, max_length=256, pattern=_CRON)] | None = None
    """When, as five cron fields: minute, hour, day of month, month, day of week. Absent: when asked to."""
    display_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A name for people."""
    runner_image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """The image that replays the corpus; absent: the one of this release."""
    fail_sandbox_on_drift: bool | None = None
    """Whether a failed case makes the sandbox Degraded; absent: no."""


class EvalResult(ApiModel):
    """What one replay found."""

    schema_version: str | None = None
    corpus_digest: Digest | None = None
    corpus_label: str | None = None
    job_name: str | None = None
    total: Count | None = None
    passed: Count | None = None
    failed: Count | None = None
    errored: Count | None = None
    first_failing_cases: list[str] | None = None


class EvalRun(ApiModel):
    """One replay of the past."""

    at: Time
    corpus_digest: Digest | None = None
    job_name: str | None = None
    total: Count | None = None
    passed: Count | None = None
    failed: Count | None = None
    errored: Count | None = None


class EvalStatus(Status):
    """The newest result and those before."""

    corpus_config_map_ref: NamedObject | None = None
    corpus_digest: Digest | None = None
    cron_job_name: str | None = None
    last_run_at: Time | None = None
    last_result: EvalResult | None = None
    history: list[EvalRun] | None = None


KARS_EVAL = Kind(
    name="KarsEval",
    plural="karsevals",
    short_names=("ceval",),
    spec=EvalSpec,
    status=EvalStatus,
    columns=(
        Column(name="Sandbox", json_path=".spec.targetSandboxRef.name"),
        Column(name="Schedule", json_path=".spec.schedule"),
        PHASE,
        Column(name="LastRun", json_path=".status.lastRunAt", type="date"),
        Column(name="Passed", json_path=".status.lastResult.passed", type="integer"),
        Column(name="Failed", json_path=".status.lastResult.failed", type="integer"),
        AGE,
    ),
    not_served="nothing replays a corpus yet; leave it out",
)
