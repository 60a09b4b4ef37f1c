"""Typed stubs: generated classes serve both kinds of channel, their async typing exists for checkers only."""

from typing import TYPE_CHECKING, cast

from kars.audit.v1 import audit_pb2_grpc
from kars.budget.v1 import budget_pb2_grpc
from kars.egress.v1 import egress_pb2_grpc
from kars.governance.v1 import governance_pb2_grpc
from kars.mesh.v1 import registry_pb2_grpc, relay_pb2_grpc
from kars.policy.v1 import policy_pb2_grpc
from kars.resource.v1 import resource_pb2_grpc
from kars.sandbox.v1 import sandbox_pb2_grpc

from kars_cli.session import Router, Session

if TYPE_CHECKING:
    from kars.audit.v1.audit_pb2_grpc import AuditLogAsyncStub, AuditWitnessAsyncStub
    from kars.budget.v1.budget_pb2_grpc import BudgetsAsyncStub
    from kars.egress.v1.egress_pb2_grpc import EgressControlAsyncStub
    from kars.governance.v1.governance_pb2_grpc import ApprovalsAsyncStub
    from kars.mesh.v1.registry_pb2_grpc import RegistryAsyncStub
    from kars.mesh.v1.relay_pb2_grpc import RelayStatusAsyncStub
    from kars.policy.v1.policy_pb2_grpc import PolicyDiscoveryAsyncStub, PolicyEnforcementAsyncStub
    from kars.resource.v1.resource_pb2_grpc import ResourcesAsyncStub
    from kars.sandbox.v1.sandbox_pb2_grpc import SandboxesAsyncStub


def resources(session: Session) -> "ResourcesAsyncStub":
    """Resources of the controller."""
    return cast("ResourcesAsyncStub", session.controller(resource_pb2_grpc.ResourcesStub))


def sandboxes(session: Session) -> "SandboxesAsyncStub":
    """Running sandboxes."""
    return cast("SandboxesAsyncStub", session.controller(sandbox_pb2_grpc.SandboxesStub))


def approvals(session: Session) -> "ApprovalsAsyncStub":
    """Held calls."""
    return cast("ApprovalsAsyncStub", session.controller(governance_pb2_grpc.ApprovalsStub))


def discovery(session: Session) -> "PolicyDiscoveryAsyncStub":
    """The controller's policy keys."""
    return cast("PolicyDiscoveryAsyncStub", session.controller(policy_pb2_grpc.PolicyDiscoveryStub))


def witness(session: Session) -> "AuditWitnessAsyncStub":
    """What the controller witnessed."""
    return cast("AuditWitnessAsyncStub", session.controller(audit_pb2_grpc.AuditWitnessStub))


def controller_audit(session: Session) -> "AuditLogAsyncStub":
    """The controller's audit log."""
    return cast("AuditLogAsyncStub", session.controller(audit_pb2_grpc.AuditLogStub))


def registry(session: Session) -> "RegistryAsyncStub":
    """The mesh registry, as far as operators may ask it."""
    return cast("RegistryAsyncStub", session.relay(registry_pb2_grpc.RegistryStub))


def relay_status(session: Session) -> "RelayStatusAsyncStub":
    """What the mesh relay holds."""
    return cast("RelayStatusAsyncStub", session.relay(relay_pb2_grpc.RelayStatusStub))


def relay_enforcement(session: Session) -> "PolicyEnforcementAsyncStub":
    """What the mesh relay enforces."""
    return cast("PolicyEnforcementAsyncStub", session.relay(policy_pb2_grpc.PolicyEnforcementStub))


def audit(router: Router) -> "AuditLogAsyncStub":
    """A router's audit log."""
    return cast("AuditLogAsyncStub", router.stub(audit_pb2_grpc.AuditLogStub))


def enforcement(router: Router) -> "PolicyEnforcementAsyncStub":
    """What a router enforces."""
    return cast("PolicyEnforcementAsyncStub", router.stub(policy_pb2_grpc.PolicyEnforcementStub))


def budgets(router: Router) -> "BudgetsAsyncStub":
    """A router's budgets."""
    return cast("BudgetsAsyncStub", router.stub(budget_pb2_grpc.BudgetsStub))


def egress(session: Session) -> "EgressControlAsyncStub":
    """Control of the egress proxy."""
    return cast("EgressControlAsyncStub", session.egress(egress_pb2_grpc.EgressControlStub))
