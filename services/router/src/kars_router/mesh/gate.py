"""The mesh's two places on the path: edges beside the rules of `decide`, and the `dispatch` of mesh calls."""

from kars_common.errors import (
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidInputError,
    KarsError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)

from kars_router.audit.recorder import CallRecorder
from kars_router.governance import actions
from kars_router.governance.engine import Ruling
from kars_router.mesh.calls import MeshCall
from kars_router.pipeline.call import Call
from kars_router.pipeline.door import Door
from kars_router.pipeline.verdicts import ADMIT, DecidedBy, Decision, Deny, Outcome, Verdict

_STATUS: tuple[tuple[type[KarsError], int], ...] = (
    (InvalidInputError, 400),
    (OutOfRangeError, 400),
    (UnauthenticatedError, 401),
    (PermissionDeniedError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (FailedPreconditionError, 409),
    (ResourceExhaustedError, 429),
    (DeadlineExceededError, 504),
)


class MeshDispatchGate:
    """Does what a mesh call wants, after its admission record is durable. Other calls pass."""

    name = "dispatch"

    def __init__(self, recorder: CallRecorder) -> None:
        self._recorder = recorder

    async def admit(self, call: Call) -> Verdict:
        """Perform the call."""
        if not isinstance(call, MeshCall):
            return ADMIT
        if call.admitted_seq is None:
            raise RuntimeError("dispatch without an admission record")
        # What leaves here cannot be taken back: its record comes first.
        await self._recorder.durable(call.admitted_seq)
        try:
            call.result = await call.perform()
        except KarsError as exc:
            return denial_of(exc)
        return ADMIT

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Nothing to give back."""


def judge_access(call: MeshCall) -> Deny | None:
    """Return why a sandbox may not do this in the mesh, whatever its rules say; None when it may."""
    access = call.in_force.mesh
    if access is None:
        return _denied("mesh_not_allowed", "policy gives this sandbox no part in the mesh")
    if call.operation == "send" and not access.may_send(call.peer):
        return _denied("edge_forbidden", f"no edge of the trust graph leads to {call.peer}")
    return None


def may_receive(door: Door, redact: actions.Redact, sender: str) -> bool:
    """Tell whether a delivery of a peer may reach the agent, by edges and rules as they are now.

    Charges no rate: what was accepted for delivery is not lost to a limit. A rule that asks a person counts
    as a denial here, since nobody can be asked on a stream.
    """
    policy = door.policy
    if policy is None or policy.mesh is None or not policy.mesh.may_receive(sender):
        return False
    context = {
        "sandbox": door.name,
        "namespace": door.namespace,
        "kind": MeshCall.kind,
        "mesh.operation": "receive",
        "mesh.peer": sender,
    }
    action = actions.canonical(f"mesh:receive:{sender}", redact, context=context)
    return policy.engine.evaluate(action, door.rates, charge=False).ruling is Ruling.ALLOW


def denial_of(error: KarsError) -> Deny:
    """Return a refusal of relay, controller or bridge as this door says it, with the same reason."""
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 503)
    limited = status == 429
    wait_ms = error.metadata.get("retry_after_ms", "")
    return Deny(
        status=status,
        error_type="rate_limit_error" if limited else "mesh_error",
        code=error.reason,
        message=error.message,
        decision=Decision.RATE_LIMITED if limited else Decision.BLOCKED,
        retry_after_s=int(wait_ms) / 1000 if wait_ms.isdecimal() else 1.0 if status == 503 else None,
    )


def _denied(code: str, message: str) -> Deny:
    return Deny(
        status=403,
        error_type="policy_violation",
        code=code,
        message=message,
        decided_by=DecidedBy.ROUTER,
    )
