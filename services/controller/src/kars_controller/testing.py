"""What tests of the controller need: documents, and a platform in memory. Never imported by the service."""

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.errors import KarsError, NotFoundError, UnavailableError

from kars_controller.api_types.base import API_VERSION
from kars_controller.platforms.base import (
    ContainerState,
    ContainerStatus,
    HostReport,
    PodPhase,
    PodPlan,
    PodStatus,
    SandboxKey,
)

DENY_PROFILE = """\
version: "1.0"
agent: test
defaultAction: deny
policies:
  - {name: models, type: capability, allowed_actions: ["inference:*"]}
"""


class Clock:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.moment

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.moment += timedelta(seconds=seconds)


def document(kind: str, name: str, spec: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
    """Return a document as `kars apply` sends it."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def sandbox(name: str = "agent", **spec: Any) -> dict[str, Any]:  # noqa: ANN401 - spec fields
    """Return a KarsSandbox that runs where PydanticAi is installed; keywords replace fields of its spec."""
    base: dict[str, Any] = {
        "runtime": {"kind": "PydanticAi", "pydanticAi": {}},
        "sandbox": {},
        "inferenceRef": {"name": "models"},
        "governance": {"enabled": True, "toolPolicyRef": {"name": "tools"}},
    }
    return document("KarsSandbox", name, {**base, **spec})


def inference_policy(name: str = "models", **spec: Any) -> dict[str, Any]:  # noqa: ANN401 - spec fields
    """Return an InferencePolicy with one model."""
    preference = {"primary": {"provider": "openai", "deployment": "gpt"}}
    return document("InferencePolicy", name, {"appliesTo": {}, "modelPreference": preference, **spec})


def tool_policy(name: str = "tools", **spec: Any) -> dict[str, Any]:  # noqa: ANN401 - spec fields
    """Return a ToolPolicy that allows model calls only."""
    base = {"appliesTo": {"sandboxMatchLabels": {"a": "b"}}, "agtProfile": {"inline": DENY_PROFILE}}
    return document("ToolPolicy", name, {**base, **spec})


class FakePlatform:
    """Implements `base.Platform` in memory: pods are up at once, unless `apply_error` is set."""

    def __init__(self) -> None:
        self.plans: dict[SandboxKey, PodPlan] = {}
        self.statuses: dict[SandboxKey, PodStatus] = {}
        self.applied: list[PodPlan] = []
        self.apply_error: KarsError | None = None
        self.ports: dict[tuple[SandboxKey, int], socket.socket] = {}
        self.closed = False
        self._changed: asyncio.Queue[SandboxKey] = asyncio.Queue()

    async def apply(self, plan: PodPlan) -> None:
        """Bring the pod up."""
        if self.apply_error is not None:
            raise self.apply_error
        self.applied.append(plan)
        self.plans[plan.key] = plan
        self.set_status(running_pod(plan))

    def set_status(self, status: PodStatus) -> None:
        """Let the platform observe something."""
        self.statuses[status.key] = status
        self._changed.put_nowait(status.key)

    async def delete(self, key: SandboxKey) -> None:
        """Remove the pod."""
        self.plans.pop(key, None)
        self.statuses.pop(key, None)

    async def observe(self, key: SandboxKey) -> PodStatus | None:
        """Return what was set."""
        return self.statuses.get(key)

    async def changes(self) -> AsyncIterator[SandboxKey]:
        """Yield keys as statuses are set."""
        while True:
            yield await self._changed.get()

    async def logs(
        self, key: SandboxKey, container: str, *, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """Yield two lines, the second in two pieces."""
        if key not in self.statuses:
            raise NotFoundError("sandbox_not_found", f"no logs of {key}")
        for chunk in (f"{container} {tail} {follow}\nsec".encode(), b"ond \xff\n"):
            yield chunk

    async def dial(self, key: SandboxKey, port: int) -> socket.socket:
        """Return the prepared end of a connection."""
        if key not in self.statuses:
            raise NotFoundError("sandbox_not_found", f"{key} does not run")
        if (key, port) not in self.ports:
            raise UnavailableError("port_closed", f"nothing on {port}")
        return self.ports.pop((key, port))

    async def host_report(self) -> HostReport:
        """Return a full report."""
        return HostReport(platform="fake", kernel="6.12.0", root=True, tier="full", controls=())

    async def close(self) -> None:
        """Remember that it was let go."""
        self.closed = True


def running_pod(plan: PodPlan) -> PodStatus:
    """Return the status of a pod that is as planned."""
    state = ContainerState.WAITING if plan.suspended else ContainerState.RUNNING
    container = ContainerStatus(name="agent", state=state, ready=not plan.suspended)
    return PodStatus(
        key=plan.key,
        uid=plan.uid,
        plan_digest=plan.digest,
        phase=PodPhase.SUSPENDED if plan.suspended else PodPhase.RUNNING,
        agent=container,
        router=replace(container, name="router"),
    )


class Vertex:
    """One identity of a TrustGraph, able to sign its edges."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = Ed25519PrivateKey.generate()

    def document(self) -> dict[str, Any]:
        """Return the vertex as the graph lists it."""
        public = self.key.public_key().public_bytes_raw()
        return {"id": self.name, "alg": "EdDSA", "publicKeyB64u": b64u(public)}

    def trusts(
        self, other: str, score: int = 800, issued_at: int = 1_700_000_000, not_after: int | None = None
    ) -> dict[str, Any]:
        """Return a signed edge to another vertex."""
        ends = "" if not_after is None else str(not_after)
        lines = ("trustgraph.v1", self.name, other, str(score), str(issued_at), ends, "")
        edge: dict[str, Any] = {"from": self.name, "to": other, "score": score, "issuedAt": issued_at}
        if not_after is not None:
            edge["notAfter"] = not_after
        return {**edge, "signature": b64u(self.key.sign("\n".join(lines).encode()))}


def trust_graph(
    vertices: Iterable[Vertex], edges: Iterable[dict[str, Any]], name: str = "team"
) -> dict[str, Any]:
    """Return a TrustGraph."""
    found = document(
        "TrustGraph", name, {"vertices": [item.document() for item in vertices], "edges": list(edges)}
    )
    del found["metadata"]["namespace"]
    return found


def b64u(raw: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
