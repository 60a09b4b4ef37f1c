"""A workload speaks for itself only: its certificate decides, its words must agree."""

from kars.policy.v1 import policy_pb2
from kars_common.errors import PermissionDeniedError
from kars_common.spiffe import SpiffeId

from kars_controller.platforms.base import SandboxKey


def own_sandbox(claimed: policy_pb2.SandboxRef, identity: SpiffeId) -> SandboxKey:
    """Return the caller's sandbox.

    Raises:
        PermissionDeniedError: `not_own_sandbox`: it named another one, or is no sandbox.
    """
    proven = identity.sandbox_ref
    if proven is None or proven != (claimed.namespace, claimed.name):
        raise PermissionDeniedError("not_own_sandbox", f"{identity.path} may speak for its own sandbox only")
    return SandboxKey(*proven)
