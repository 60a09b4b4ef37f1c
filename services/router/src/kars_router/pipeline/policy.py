"""A PolicyBundle compiled into what the gates need; immutable, swapped as a whole."""

import datetime
from dataclasses import dataclass, field

from kars.policy.v1 import policy_pb2

from kars_router.budget.ledger import BudgetLimits
from kars_router.governance.engine import Engine, PolicyCompileError
from kars_router.guardrails.safety import SafetyFloor
from kars_router.mesh.access import MeshAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model that policy allows: a configured provider's name and the name sent to it."""

    provider: str
    deployment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPolicy:
    """Everything one door enforces."""

    version: int
    digest: str
    payload: bytes
    engine: Engine
    floor: SafetyFloor
    models: tuple[Model, ...]
    budget: BudgetLimits
    limits: policy_pb2.RequestLimits
    mesh: MeshAccess | None = None
    since: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    @classmethod
    def compile(cls, bundle: policy_pb2.PolicyBundle, payload: bytes, digest: str) -> "CompiledPolicy":
        """Compile a verified bundle.

        Raises:
            PolicyCompileError: a rule cannot be compiled; the bundle must not come into force.
        """
        budget = bundle.inference.token_budget
        if min(budget.per_request_tokens, budget.daily_tokens, budget.monthly_tokens) < 0:
            raise PolicyCompileError("token budgets must not be negative")
        limits = bundle.limits
        bounds = (limits.requests_per_second, limits.burst, limits.max_concurrent)
        if min(*bounds, limits.max_request_bytes, limits.max_response_bytes) < 0:
            raise PolicyCompileError("request limits must not be negative")
        models = []
        for target in bundle.inference.models:
            if not target.provider or not target.deployment:
                raise PolicyCompileError("every model needs a provider and a deployment")
            models.append(Model(provider=target.provider, deployment=target.deployment))
        return cls(
            version=bundle.version,
            digest=digest,
            payload=payload,
            engine=Engine(bundle.governance),
            floor=SafetyFloor.compile(bundle.inference.content_safety),
            models=tuple(dict.fromkeys(models)),
            budget=BudgetLimits(
                per_request=budget.per_request_tokens, day=budget.daily_tokens, month=budget.monthly_tokens
            ),
            limits=limits,
            mesh=MeshAccess.compile(bundle),
        )

    def candidates(self, wanted: str) -> tuple[Model, ...]:
        """Return the models to try, the wanted one first; empty when policy does not allow it.

        An empty name asks for the policy's default. The rest follow in the policy's order of preference.
        """
        if not wanted:
            return self.models
        first = tuple(
            model
            for model in self.models
            if wanted in {model.deployment, f"{model.provider}/{model.deployment}"}
        )
        return first + tuple(model for model in self.models if model not in first) if first else ()
