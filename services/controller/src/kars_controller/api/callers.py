"""A workload speaks for itself only: its certificate decides, its words must agree."""

from kars.policy.v1 import policy_pb2
from kars_common.errors import PermissionDeniedError
from kars_common.spiffe import SpiffeId

from kars_controller.compile.mesh import RELAY_SUBJECT
from kars_controller.platforms.base import SandboxKey

_SERVICES: dict[tuple[str, ...], SandboxKey] = {("svc", "relay"): RELAY_SUBJECT}
"""Services that enforce a bundle of their own."""


def own_sandbox(claimed: policy_pb2.SandboxRef, identity: SpiffeId) -> SandboxKey:
    """Return whose policy the caller enforces: its sandbox, or a service's own subject.

    Raises:
        PermissionDeniedError: `not_own_sandbox`: it named another one, or enforces none.
    """
    proven = identity.sandbox_ref or _SERVICES.get(identity.segments)
    if proven is None or proven != (claimed.namespace, claimed.name):
        raise PermissionDeniedError("not_own_sandbox", f"{identity.path} may speak for its own sandbox only")
    return SandboxKey(*proven)
