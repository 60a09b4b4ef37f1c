"""What reconcilers return, and what they look at. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kars.policy.v1 import policy_pb2
from kars_common.errors import KarsError

from kars_controller.code_sources import GitSource
from kars_controller.distribution import Acknowledgement, Published
from kars_controller.mesh import PeerView
from kars_controller.platforms.base import PodPlan, PodStatus
from kars_controller.providers import Providers
from kars_controller.reconcile.conditions import Event
from kars_controller.resources import Document
from kars_controller.runtimes import RuntimeCatalog

STEADY_S = 300.0
AWAITING_S = 15.0
FAILED_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What should be, and what to tell people."""

    status: Mapping[str, Any]
    events: tuple[Event, ...] = ()
    requeue_s: float = STEADY_S
    bundle: policy_pb2.PolicyBundle | None = None
    """Content to publish; None leaves what is published."""
    pod: PodPlan | None = None
    """Pod to apply; None leaves what runs."""
    code: GitSource | None = None
    """Code to fetch before the pod is applied."""


@dataclass(frozen=True, kw_only=True)
class RouterMaterial:
    """What every router is given to find and trust the controller."""

    trust_domain: str
    controller_endpoint: str
    bootstrap_endpoint: str
    trust_bundle_pem: bytes
    policy_keys: bytes
    witness_key: bytes


@dataclass(frozen=True, kw_only=True)
class SandboxObserved:
    """All that bears on one sandbox, as it is now."""

    now: datetime
    inference_policy: Document | None
    tool_policy: Document | None
    missing: Mapping[str, str] = field(default_factory=dict)
    """For each kind that a reference did not find: the sentence that says so."""
    published: Published | None = None
    answer: Acknowledgement = field(default_factory=Acknowledgement)
    pod: PodStatus | None = None
    apply_error: KarsError | None = None
    """Why the platform did not take the last plan."""
    providers: Providers
    runtimes: RuntimeCatalog
    router: RouterMaterial
    byo_strict: bool = False
    code_dir: Path
    """Where fetched agent code is."""
    mesh: PeerView | None = None
    """Its part in the mesh; None where there is no mesh."""
    relay_endpoint: str = ""
    """Where the relay is; empty: none runs."""
    mesh_dir: Path | None = None
    """Folder with what every agent may read of the mesh."""


@dataclass(frozen=True, kw_only=True)
class PolicyUser:
    """One sandbox that is bound to a policy, and whether its router enforces the policy's digest."""

    name: str
    enforces: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class PolicyObserved:
    """All that bears on one policy, as it is now."""

    now: datetime
    users: tuple[PolicyUser, ...] = ()
