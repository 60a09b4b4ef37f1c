"""Fakes that implement the real servicers: a little memory, and the errors that the real ones raise."""

# ruff: noqa: N802  # named by the contracts

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp
from kars.budget.v1 import budget_pb2, budget_pb2_grpc
from kars.governance.v1 import governance_pb2, governance_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)

REPORTER = policy_pb2.SandboxRef(namespace="default", name="reporter")
APPROVAL_ID = "01a20a6b78c44181774425e944"


def new_log(directory: Path) -> AuditLog:
    log = AuditLog.open(
        directory, "spiffe://kars.local/ns/default/sandbox/reporter", Ed25519PrivateKey.generate()
    )
    for number in range(5):
        log.append("call.settled", {"call": f"c{number}", "charged": number})
    log.append("call.denied", {"call": "c9", "code": "policy_denied"})
    return log


class FakeResources(resource_pb2_grpc.ResourcesServicer):
    """Keeps documents; refuses a sandbox without inferenceRef as the real one does."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.phase = "Running"

    async def ApplyResource(
        self, request: resource_pb2.ApplyResourceRequest, context: Any
    ) -> resource_pb2.ApplyResourceResponse:
        document = json.loads(request.document_json)
        spec = document.get("spec") or {}
        if document["kind"] == "KarsSandbox" and "inferenceRef" not in spec:
            violations = [
                FieldViolation("spec.sandbox.isolation", 'got "tight", allowed: standard, enhanced'),
                FieldViolation("spec.inferenceRef", "is required"),
            ]
            raise InvalidInputError(
                "schema_invalid", "KarsSandbox reporter is not valid", violations=violations
            )
        metadata = document["metadata"]
        key = (document["kind"], metadata["namespace"], metadata["name"])
        outcome = (
            resource_pb2.APPLY_OUTCOME_UNCHANGED
            if key in self.documents and self.documents[key]["spec"] == spec
            else resource_pb2.APPLY_OUTCOME_CREATED
        )
        metadata |= {"generation": 1, "resourceVersion": str(len(self.documents) + 1)}
        ready = [
            {
                "type": "Ready",
                "status": "True" if self.phase == "Running" else "False",
                "reason": "Reconciled",
            }
        ]
        document["status"] = {"phase": self.phase, "observedGeneration": 1, "conditions": ready}
        if not request.dry_run:
            self.documents[key] = document
        return resource_pb2.ApplyResourceResponse(
            outcome=outcome, document_json=json.dumps(document), warnings=["spec.agent: has no effect"]
        )

    async def GetResource(
        self, request: resource_pb2.GetResourceRequest, context: Any
    ) -> resource_pb2.GetResourceResponse:
        return resource_pb2.GetResourceResponse(document_json=json.dumps(self._find(request.key)))

    async def ListResources(
        self, request: resource_pb2.ListResourcesRequest, context: Any
    ) -> resource_pb2.ListResourcesResponse:
        found = [
            json.dumps(document)
            for (kind, namespace, _), document in sorted(self.documents.items())
            if kind == request.kind and request.namespace in ("", namespace)
        ]
        return resource_pb2.ListResourcesResponse(documents_json=found, resource_version=len(self.documents))

    async def WatchResources(
        self, request: resource_pb2.WatchResourcesRequest, context: Any
    ) -> AsyncIterator[resource_pb2.WatchResourcesResponse]:
        for (kind, _, _), document in self.documents.items():
            if kind == request.kind:
                yield resource_pb2.WatchResourcesResponse(
                    type=resource_pb2.CHANGE_TYPE_ADDED,
                    document_json=json.dumps(document),
                    resource_version=1,
                )

    async def DeleteResource(
        self, request: resource_pb2.DeleteResourceRequest, context: Any
    ) -> resource_pb2.DeleteResourceResponse:
        document = self._find(request.key)
        del self.documents[request.key.kind, request.key.namespace, request.key.name]
        return resource_pb2.DeleteResourceResponse(document_json=json.dumps(document))

    async def ListEvents(
        self, request: resource_pb2.ListEventsRequest, context: Any
    ) -> resource_pb2.ListEventsResponse:
        event = {"type": "Normal", "reason": "Reconciled", "message": "the agent runs", "count": 2}
        return resource_pb2.ListEventsResponse(documents_json=[json.dumps(event)])

    async def ListKinds(
        self, request: resource_pb2.ListKindsRequest, context: Any
    ) -> resource_pb2.ListKindsResponse:
        phase = resource_pb2.PrinterColumn(name="Phase", json_path=".status.phase", type="string")
        ready = resource_pb2.PrinterColumn(
            name="Ready", json_path='.status.conditions[?(@.type=="Ready")].status', priority=1, type="string"
        )
        kinds = [
            resource_pb2.KindInfo(
                kind=kind, plural=plural, short_names=[short], namespaced=True, columns=[phase, ready]
            )
            for kind, plural, short in (
                ("KarsSandbox", "karssandboxes", "cs"),
                ("InferencePolicy", "inferencepolicies", "ip"),
            )
        ]
        return resource_pb2.ListKindsResponse(kinds=kinds)

    def _find(self, key: resource_pb2.ResourceKey) -> dict[str, Any]:
        document = self.documents.get((key.kind, key.namespace, key.name))
        if document is None:
            raise NotFoundError("resource_not_found", f"no {key.kind} {key.namespace}/{key.name}")
        return document


class FakeSandboxes(sandbox_pb2_grpc.SandboxesServicer):
    """One sandbox whose agent speaks chat."""

    def __init__(self) -> None:
        self.router_endpoint = ""
        self.answers: list[bytes] = []
        self.heard = b""
        self.refuse_port = False

    async def GetSandbox(
        self, request: sandbox_pb2.GetSandboxRequest, context: Any
    ) -> sandbox_pb2.GetSandboxResponse:
        if request.sandbox != REPORTER:
            raise NotFoundError("sandbox_not_found", f"no sandbox {request.sandbox.name}")
        agent = sandbox_pb2.ContainerStatus(
            name="agent", state=sandbox_pb2.CONTAINER_STATE_RUNNING, ready=True
        )
        control = sandbox_pb2.IsolationControl(name="seccomp", state=sandbox_pb2.CONTROL_STATE_ENFORCED)
        return sandbox_pb2.GetSandboxResponse(
            containers=[agent], router_endpoint=self.router_endpoint, controls=[control]
        )

    async def StreamLogs(
        self, request: sandbox_pb2.StreamLogsRequest, context: Any
    ) -> AsyncIterator[sandbox_pb2.StreamLogsResponse]:
        yield sandbox_pb2.StreamLogsResponse(data=f"{request.container} says hello\n".encode())
        yield sandbox_pb2.StreamLogsResponse(data=b"last \xff\n")

    async def Connect(
        self, requests: AsyncIterator[sandbox_pb2.ConnectRequest], context: Any
    ) -> AsyncIterator[sandbox_pb2.ConnectResponse]:
        if self.refuse_port:
            raise UnavailableError("port_refused", "nothing listens on port 18789")
        first = await anext(requests)
        assert first.open.sandbox == REPORTER
        hello = {"type": "hello", "protocol": "kars.chat/1", "agent": "reporter", "runtime": "fake"}
        yield sandbox_pb2.ConnectResponse(data=json.dumps(hello).encode() + b"\n")
        async for request in requests:
            self.heard += request.data
            if self.heard.endswith(b"\n") and self.answers:
                answer = self.answers.pop(0)
                half = len(answer) // 2
                yield sandbox_pb2.ConnectResponse(data=answer[:half])
                yield sandbox_pb2.ConnectResponse(data=answer[half:])

    async def GetHostReport(
        self, request: sandbox_pb2.GetHostReportRequest, context: Any
    ) -> sandbox_pb2.GetHostReportResponse:
        control = sandbox_pb2.IsolationControl(
            name="landlock", state=sandbox_pb2.CONTROL_STATE_UNAVAILABLE, remedy="use Linux 6.7"
        )
        return sandbox_pb2.GetHostReportResponse(platform="local", tier="degraded", controls=[control])


class FakeApprovals(governance_pb2_grpc.ApprovalsServicer):
    """One pending approval."""

    def __init__(self) -> None:
        self.state = governance_pb2.APPROVAL_STATE_PENDING
        self.note = ""

    def approval(self) -> governance_pb2.Approval:
        return governance_pb2.Approval(
            id=APPROVAL_ID,
            sandbox=REPORTER,
            action="tool:publish_report:q3.md",
            detail="publish_report(\x1b[2J q3.md)",
            state=self.state,
            created_at=Timestamp(seconds=1_700_000_000),
            min_approvals=1,
            note=self.note,
        )

    async def Attach(
        self, requests: AsyncIterator[governance_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[governance_pb2.AttachResponse]:
        async for _ in requests:
            yield governance_pb2.AttachResponse()

    async def ListApprovals(
        self, request: governance_pb2.ListApprovalsRequest, context: Any
    ) -> governance_pb2.ListApprovalsResponse:
        pending = self.state == governance_pb2.APPROVAL_STATE_PENDING
        shown = [self.approval()] if pending or request.include_closed else []
        return governance_pb2.ListApprovalsResponse(approvals=shown)

    async def WatchApprovals(
        self, request: governance_pb2.WatchApprovalsRequest, context: Any
    ) -> AsyncIterator[governance_pb2.WatchApprovalsResponse]:
        yield governance_pb2.WatchApprovalsResponse(approval=self.approval())

    async def DecideApproval(
        self, request: governance_pb2.DecideApprovalRequest, context: Any
    ) -> governance_pb2.DecideApprovalResponse:
        if self.state != governance_pb2.APPROVAL_STATE_PENDING:
            raise FailedPreconditionError("approval_closed", "the approval is closed")
        if not APPROVAL_ID.startswith(request.id):
            raise NotFoundError("approval_not_found", "no such approval")
        self.state = (
            governance_pb2.APPROVAL_STATE_GRANTED if request.grant else governance_pb2.APPROVAL_STATE_DENIED
        )
        self.note = request.note
        return governance_pb2.DecideApprovalResponse(approval=self.approval())


class FakeEnforcement(policy_pb2_grpc.PolicyEnforcementServicer):
    """A router with a policy in force."""

    async def GetInForce(
        self, request: policy_pb2.GetInForceRequest, context: Any
    ) -> policy_pb2.GetInForceResponse:
        policy = {
            "inference": {
                "models": [{"provider": "openai", "deployment": "gpt-4o-mini"}],
                "tokenBudget": {"perRequestTokens": "1200"},
            },
            "governance": {
                "defaultVerdict": "VERDICT_DENY",
                "rules": [{"name": "keep", "capability": {"deniedActions": ["tool:delete_notes"]}}],
            },
            "sources": [
                {"kind": "InferencePolicy", "name": "quick", "generation": "1", "digest": "sha256:ab"}
            ],
        }
        door = policy_pb2.InForce(
            sandbox=REPORTER,
            version=3,
            digest="sha256:00",
            last_known_good=True,
            payload=json.dumps(policy).encode(),
        )
        return policy_pb2.GetInForceResponse(doors=[door])


class FakeBudgets(budget_pb2_grpc.BudgetsServicer):
    """Half of the day's budget is spent."""

    async def GetUsage(
        self, request: budget_pb2.GetUsageRequest, context: Any
    ) -> budget_pb2.GetUsageResponse:
        day = budget_pb2.Window(kind=budget_pb2.WINDOW_KIND_DAY, used_tokens=500, limit_tokens=1000)
        return budget_pb2.GetUsageResponse(windows=[day], refused_calls=4)
