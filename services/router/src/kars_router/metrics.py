"""Counters of one router process.

Every label comes from a closed set: doors, policy's models, enums of this code.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kars_router.pipeline.call import Call, InferenceCall
from kars_router.pipeline.door import Door
from kars_router.pipeline.verdicts import Ending, Outcome

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelMetrics:
    completed: Counter
    failed: Counter
    latency: Histogram
    input: Counter
    output: Counter


class RouterMetrics:
    """All metrics of the router; see spec 1.13 for the names kept from the reference."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "kars_inference_requests", "Model calls", ["sandbox", "model", "status"], registry=registry
        )
        self.latency = Histogram(
            "kars_inference_latency_seconds",
            "Model calls from arrival to settlement",
            ["sandbox", "model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter("kars_tokens", "Tokens", ["sandbox", "model", "direction"], registry=registry)
        self.denials = Counter(
            "kars_denials", "Calls that a gate refused", ["sandbox", "gate", "decision"], registry=registry
        )
        self.refused = Counter(
            "kars_refused_requests",
            "Requests that never became a call",
            ["sandbox", "status"],
            registry=registry,
        )
        self.redactions = Counter(
            "kars_agt_redactions", "Secrets taken out of answers", ["kind"], registry=registry
        )
        self.attempts = Counter(
            "kars_upstream_attempts", "Tries at providers", ["provider", "result"], registry=registry
        )
        self.evaluations = Counter(
            "kars_agt_policy_evaluations", "Decided calls", ["kind", "decision"], registry=registry
        )
        # Looking a child up by labels costs more than counting; the sets are closed, so they are kept.
        self._evaluations: dict[tuple[str, str], Counter] = {}
        self._attempts: dict[tuple[str, str], Counter] = {}
        self._models: dict[tuple[str, str], _ModelMetrics] = {}
        self._used = Gauge(
            "kars_budget_used_tokens", "Settled tokens", ["sandbox", "window"], registry=registry
        )
        self._reserved = Gauge(
            "kars_budget_reserved_tokens",
            "Tokens held by calls in flight",
            ["sandbox", "window"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "kars_calls_in_flight", "Calls that hold a slot", ["sandbox"], registry=registry
        )
        self._policy = Gauge(
            "kars_policy_bundle_version",
            "Version in force; 0 when everything is denied",
            ["sandbox"],
            registry=registry,
        )

    def watch(self, door: Door) -> None:
        """Show a door's ledger and slots; read only when scraped."""
        sandbox, ledger = door.sandbox, door.ledger
        self._used.labels(sandbox, "day").set_function(lambda: ledger.used_day)
        self._used.labels(sandbox, "month").set_function(lambda: ledger.used_month)
        self._reserved.labels(sandbox, "day").set_function(lambda: ledger.reserved_day)
        self._reserved.labels(sandbox, "month").set_function(lambda: ledger.reserved_month)
        self._in_flight.labels(sandbox).set_function(lambda: door.slots.in_flight)
        self._policy.labels(sandbox).set_function(
            lambda: door.policy.version if door.policy is not None else 0
        )

    def ended(self, call: Call, outcome: Outcome, seconds: float) -> None:
        """Count the end of a call."""
        denial = outcome.denial
        self._evaluated(call.kind, denial.decision.value if denial is not None else "Allowed").inc()
        if denial is not None:
            self.denials.labels(call.door.sandbox, denial.gate, denial.decision.value).inc()
        if not isinstance(call, InferenceCall) or not call.models:
            return  # a model outside policy is named by the caller: no label
        child = self._model(call.door.sandbox, call.model)
        (child.completed if outcome.ending is Ending.COMPLETED else child.failed).inc()
        child.latency.observe(seconds)
        if call.usage is not None:
            child.input.inc(call.usage.input_tokens)
            child.output.inc(call.usage.output_tokens)

    def attempt(self, provider: str, result: str) -> None:
        """Count a try at a provider; both come from configuration and from this code."""
        child = self._attempts.get((provider, result))
        if child is None:
            child = self._attempts[provider, result] = self.attempts.labels(provider, result)
        child.inc()

    def _evaluated(self, kind: str, decision: str) -> Counter:
        child = self._evaluations.get((kind, decision))
        if child is None:
            child = self._evaluations[kind, decision] = self.evaluations.labels(kind, decision)
        return child

    def _model(self, sandbox: str, model: str) -> "_ModelMetrics":
        child = self._models.get((sandbox, model))
        if child is None:
            child = self._models[sandbox, model] = _ModelMetrics(
                completed=self.requests.labels(sandbox, model, "ok"),
                failed=self.requests.labels(sandbox, model, "error"),
                latency=self.latency.labels(sandbox, model),
                input=self.tokens.labels(sandbox, model, "input"),
                output=self.tokens.labels(sandbox, model, "output"),
            )
        return child

    def refused_request(self, door: Door, status: int) -> None:
        """Count a request that never became a call."""
        self.refused.labels(door.sandbox, str(status)).inc()
