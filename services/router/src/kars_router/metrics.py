"""Counters of one router process.

Every label comes from a closed set: doors, policy's models, enums of this code.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kars_router.pipeline.call import Call, InferenceCall
from kars_router.pipeline.door import Door
from kars_router.pipeline.verdicts import Ending, Outcome

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


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
        sandbox = call.door.sandbox
        denial = outcome.denial
        self.evaluations.labels(call.kind, denial.decision.value if denial is not None else "Allowed").inc()
        if denial is not None:
            self.denials.labels(sandbox, denial.gate, denial.decision.value).inc()
        if not isinstance(call, InferenceCall) or not call.models:
            return  # a model outside policy is named by the caller: no label
        self.requests.labels(
            sandbox, call.model, "ok" if outcome.ending is Ending.COMPLETED else "error"
        ).inc()
        self.latency.labels(sandbox, call.model).observe(seconds)
        if call.usage is not None:
            self.tokens.labels(sandbox, call.model, "input").inc(call.usage.input_tokens)
            self.tokens.labels(sandbox, call.model, "output").inc(call.usage.output_tokens)

    def refused_request(self, door: Door, status: int) -> None:
        """Count a request that never became a call."""
        self.refused.labels(door.sandbox, str(status)).inc()
