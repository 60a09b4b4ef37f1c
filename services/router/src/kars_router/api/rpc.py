"""gRPC towards operators and the controller: what is in force, what is used, which models serve."""

from collections.abc import Callable, Sequence
from typing import Any

from kars.budget.v1 import budget_pb2, budget_pb2_grpc
from kars.inference.v1 import inference_pb2, inference_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.errors import NotFoundError
from kars_common.policy import PolicyWatch

from kars_router.pipeline.door import Door
from kars_router.pipeline.policy import Model
from kars_router.providers.config import ProviderRegistry
from kars_router.providers.health import Health

Context = Any
"""grpc.aio.ServicerContext; it is generic over types that no one here looks at."""


def _ref(door: Door) -> policy_pb2.SandboxRef:
    return policy_pb2.SandboxRef(namespace=door.namespace, name=door.name)


class PolicyEnforcementServicer(policy_pb2_grpc.PolicyEnforcementServicer):
    """Tells which bundle each door enforces."""

    def __init__(self, doors: Sequence[Door], watch: Callable[[], PolicyWatch]) -> None:
        self._doors = doors
        self._watch = watch

    async def GetInForce(  # noqa: N802 - named by the contract
        self,
        request: policy_pb2.GetInForceRequest,  # noqa: ARG002 - the contract's
        context: Context,  # noqa: ARG002 - the contract's
    ) -> policy_pb2.GetInForceResponse:
        """Return what each door enforces now."""
        return policy_pb2.GetInForceResponse(doors=[self._in_force(door) for door in self._doors])

    def _in_force(self, door: Door) -> policy_pb2.InForce:
        watch = self._watch()
        kept = watch.in_force is not None and watch.in_force.last_known_good
        found = policy_pb2.InForce(sandbox=_ref(door), last_known_good=kept)
        nack = watch.last_nack
        if nack is not None:
            found.last_nack.CopyFrom(nack)
        policy = door.policy
        if policy is not None:
            found.version, found.digest, found.payload = policy.version, policy.digest, policy.payload
            found.since.FromDatetime(policy.since)
        return found


class BudgetsServicer(budget_pb2_grpc.BudgetsServicer):
    """Tells what is used, reserved and left."""

    def __init__(self, doors: Sequence[Door]) -> None:
        self._doors = {(door.namespace, door.name): door for door in doors}

    async def GetUsage(  # noqa: N802 - named by the contract
        self,
        request: budget_pb2.GetUsageRequest,
        context: Context,  # noqa: ARG002 - the contract's
    ) -> budget_pb2.GetUsageResponse:
        """Return the windows of one sandbox."""
        door = self._doors.get((request.sandbox.namespace, request.sandbox.name))
        if door is None:
            raise NotFoundError("sandbox_not_found", "this router has no door of that sandbox")
        ledger = door.ledger
        day_end, month_end = ledger.resets()
        limits = door.policy.budget if door.policy is not None else None
        day = budget_pb2.Window(
            kind=budget_pb2.WINDOW_KIND_DAY,
            used_tokens=ledger.used_day,
            reserved_tokens=ledger.reserved_day,
            limit_tokens=limits.day if limits is not None else 0,
        )
        month = budget_pb2.Window(
            kind=budget_pb2.WINDOW_KIND_MONTH,
            used_tokens=ledger.used_month,
            reserved_tokens=ledger.reserved_month,
            limit_tokens=limits.month if limits is not None else 0,
        )
        day.resets_at.FromDatetime(day_end)
        month.resets_at.FromDatetime(month_end)
        return budget_pb2.GetUsageResponse(windows=[day, month], refused_calls=ledger.refused_calls)


class ModelsServicer(inference_pb2_grpc.ModelsServicer):
    """Tells which models policy allows and how their providers fare."""

    def __init__(self, doors: Sequence[Door], providers: ProviderRegistry, health: Health) -> None:
        self._doors = doors
        self._providers = providers
        self._health = health

    async def ListModels(  # noqa: N802 - named by the contract
        self,
        request: inference_pb2.ListModelsRequest,
        context: Context,  # noqa: ARG002 - the contract's
    ) -> inference_pb2.ListModelsResponse:
        """Return the models of one door, or of all."""
        wanted = (request.sandbox.namespace, request.sandbox.name) if request.HasField("sandbox") else None
        models = [
            self._status(door, rank, model)
            for door in self._doors
            if wanted is None or wanted == (door.namespace, door.name)
            for rank, model in enumerate(door.policy.models if door.policy is not None else ())
        ]
        return inference_pb2.ListModelsResponse(models=models)

    def _status(self, door: Door, rank: int, model: Model) -> inference_pb2.ModelStatus:
        known = self._health.get(model)
        healthy = self._health.healthy(model)
        state = inference_pb2.HEALTH_STATE_HEALTHY if healthy else inference_pb2.HEALTH_STATE_UNHEALTHY
        health = inference_pb2.ProviderHealth(
            state=state if known.called else inference_pb2.HEALTH_STATE_UNSPECIFIED,
            consecutive_failures=known.failures,
        )
        if known.last_success_unix:
            health.last_success.FromMicroseconds(int(known.last_success_unix * 1e6))
            health.last_latency.FromMicroseconds(int(known.last_latency_s * 1e6))
        return inference_pb2.ModelStatus(
            sandbox=_ref(door),
            target=policy_pb2.ModelTarget(provider=model.provider, deployment=model.deployment),
            rank=rank,
            provider_configured=self._providers.get(model.provider) is not None,
            health=health,
        )
