"""KarsSREAction: one repair that an agent proposes and a person approves. What was read is what is done."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kars_controller.api_types.base import AGE, PHASE, ApiModel, Column, Kind, ObjectName
from kars_controller.api_types.published import LABEL_PATTERN, CelRule
from kars_controller.api_types.status import Status, Time

_PRINTABLE = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"


class ActionParams(ApiModel):
    """What the action is about, and what it takes."""

    namespace: Annotated[str, Field(min_length=1, max_length=63, pattern=LABEL_PATTERN)]
    """Namespace of the object."""
    name: ObjectName
    """Name of the object."""
    kind: Literal["Deployment", "StatefulSet", "DaemonSet"] | None = None
    """What RolloutRestart restarts; absent: a Deployment."""
    container: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """The container that PatchDeploymentImage is about."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """The image that it gets."""
    replicas: Annotated[int, Field(ge=0, le=50)] | None = None
    """How many replicas ScaleDeployment asks for."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!self.namespace.startsWith('kube-') && !self.namespace.startsWith('kars-')"
            " && self.namespace != 'agentmesh'",
            "namespaces of the cluster and of kars are not repaired by an agent",
            ".namespace",
        ),
    )


class Action(ApiModel):
    """The repair."""

    type: Literal[
        "DeleteResourceQuota", "PatchDeploymentImage", "ScaleDeployment", "RolloutRestart", "DeletePod"
    ]
    """Which repair."""
    params: ActionParams
    """What it is about."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        *(
            CelRule(
                f"has(self.params.{name}) == (self.type == '{owner}')",
                f"is required for {owner}, and not allowed otherwise",
                f".params.{name}",
            )
            for name, owner in (
                ("container", "PatchDeploymentImage"),
                ("image", "PatchDeploymentImage"),
                ("replicas", "ScaleDeployment"),
            )
        ),
        CelRule(
            "!has(self.params.kind) || self.type == 'RolloutRestart'",
            "allowed for RolloutRestart only",
            ".params.kind",
        ),
    )


class Approval(ApiModel):
    """A person's decision; final."""

    state: Literal["Pending", "Approved", "Rejected"]
    """The decision."""
    note: Annotated[str, Field(max_length=512)] | None = None
    """What the approver says."""


def _unchanged(name: str) -> CelRule:
    return CelRule(
        f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
        "cannot be changed: what was read by the approver is what is done",
        f".{name}",
    )


class SREActionSpec(ApiModel):
    """The proposal and its approval."""

    action: Action
    """The repair."""
    approval: Approval
    """The decision about it."""
    ttl_minutes: Annotated[int, Field(ge=1, le=60)] = 15
    """How long the proposal waits for a decision."""
    diagnosis: Annotated[str, Field(max_length=512)] | None = None
    """What is wrong."""
    rationale: Annotated[str, Field(max_length=2048, pattern=_PRINTABLE)] | None = None
    """Why this repairs it."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "oldSelf.hasValue() || self.approval.state == 'Pending'",
            "allowed on create: Pending; nobody approves their own proposal",
            ".approval.state",
            on_create=True,
        ),
        CelRule(
            "oldSelf.approval.state == 'Pending' || self.approval == oldSelf.approval",
            "the decision is final; propose the action again",
            ".approval",
        ),
        *(_unchanged(name) for name in ("action", "ttlMinutes", "diagnosis", "rationale")),
    )


class SREActionStatus(Status):
    """How far the action is."""

    phase: Literal["Proposed", "Approved", "Applied", "Recovered", "Rejected", "Expired", "Failed"] | None = (
        None
    )
    applied_at: Time | None = None
    writer_crb_name: str | None = None


SRE_ACTION = Kind(
    name="KarsSREAction",
    plural="karssreactions",
    short_names=("sreaction",),
    spec=SREActionSpec,
    status=SREActionStatus,
    columns=(
        Column(name="Type", json_path=".spec.action.type"),
        Column(name="Target-NS", json_path=".spec.action.params.namespace"),
        Column(name="Target-Name", json_path=".spec.action.params.name"),
        PHASE,
        Column(name="Approval", json_path=".spec.approval.state"),
        AGE,
    ),
    not_served="it repairs workloads of a cluster, and nothing carries it out yet; make the change yourself",
)
