"""Control for people and the controller: decode, call the domain, record who did it, encode."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kars.egress.v1 import egress_pb2, egress_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.errors import InvalidInputError
from kars_common.rpc import caller

from kars_egress.allowlists import AllowlistStore
from kars_egress.api import messages
from kars_egress.blocklist.service import Blocklist
from kars_egress.decisions.recording import DecisionRecorder
from kars_egress.enforcement import Enforcement
from kars_egress.policy.deciding import decide
from kars_egress.policy.entries import Entry
from kars_egress.policy.hosts import parse_url
from kars_egress.policy.sandboxes import Approval, SandboxId
from kars_egress.xds.subscription import Subscriptions

_DEFAULT_PAGE = 256
_MAX_PAGE = 1024

Context = Any


class EgressControlServicer(egress_pb2_grpc.EgressControlServicer):
    """Serves `kars.egress.v1`."""

    def __init__(
        self,
        enforcement: Enforcement,
        subscriptions: Subscriptions,
        blocklist: Blocklist,
        decisions: DecisionRecorder,
        audit: AuditLog,
        *,
        allowlists: AllowlistStore,
        max_approval_s: int,
        max_learning_s: int,
        clock_s: Callable[[], float],
    ) -> None:
        self._enforcement = enforcement
        self._subscriptions = subscriptions
        self._blocklist = blocklist
        self._decisions = decisions
        self._audit = audit
        self._allowlists = allowlists
        self._max_approval_s = max_approval_s
        self._max_learning_s = max_learning_s
        self._clock_s = clock_s

    async def ApplySandbox(  # noqa: N802 - named by the contract
        self, request: egress_pb2.ApplySandboxRequest, context: Context
    ) -> egress_pb2.ApplySandboxResponse:
        """Replace what is allowed."""
        sandbox = _sandbox(request.sandbox)
        signed = request.allowlist.digest
        if signed:
            entries, generation = await self._read_signed(sandbox, request)
        else:
            entries, generation = messages.entries(request.targets), 0
        await self._record("egress.policy.applied", context, sandbox, entries=len(entries), allowlist=signed)
        policy = self._enforcement.apply(sandbox, entries, request.network_namespace, generation)
        return egress_pb2.ApplySandboxResponse(digest=policy.digest)

    async def RemoveSandbox(  # noqa: N802 - named by the contract
        self, request: egress_pb2.RemoveSandboxRequest, context: Context
    ) -> egress_pb2.RemoveSandboxResponse:
        """Forget a sandbox."""
        sandbox = _sandbox(request.sandbox)
        await self._record("egress.policy.removed", context, sandbox)
        self._enforcement.remove(sandbox)
        for table in (self._decisions.learned, self._decisions.blocked):
            table.forget(str(sandbox))
        return egress_pb2.RemoveSandboxResponse()

    async def GrantApproval(  # noqa: N802 - named by the contract
        self, request: egress_pb2.GrantApprovalRequest, context: Context
    ) -> egress_pb2.GrantApprovalResponse:
        """Allow more for a while; on record before it is in force."""
        sandbox = _sandbox(request.sandbox)
        self._enforcement.get(sandbox)
        expires_s = self._clock_s() + _ttl_s(request.ttl, self._max_approval_s)
        approval = Approval(
            id=request.id,
            entries=messages.entries(request.targets),
            expires_s=expires_s,
            reason=request.reason,
            granted_by=str(caller(context)),
        )
        await self._record(
            "egress.approval.granted",
            context,
            sandbox,
            approval=approval.id,
            targets=[str(entry) for entry in approval.entries],
            expires=f"{expires_s:.3f}",
            reason=approval.reason,
        )
        self._enforcement.grant(sandbox, approval)
        return egress_pb2.GrantApprovalResponse(expires_at=_timestamp(expires_s))

    async def RevokeApproval(  # noqa: N802 - named by the contract
        self, request: egress_pb2.RevokeApprovalRequest, context: Context
    ) -> egress_pb2.RevokeApprovalResponse:
        """End an approval now."""
        sandbox = _sandbox(request.sandbox)
        await self._record("egress.approval.revoked", context, sandbox, approval=request.id[:63])
        self._enforcement.revoke(sandbox, request.id)
        return egress_pb2.RevokeApprovalResponse()

    async def StartLearning(  # noqa: N802 - named by the contract
        self, request: egress_pb2.StartLearningRequest, context: Context
    ) -> egress_pb2.StartLearningResponse:
        """Let a sandbox learn for a while."""
        sandbox = _sandbox(request.sandbox)
        self._enforcement.get(sandbox)
        until_s = self._clock_s() + _ttl_s(request.ttl, self._max_learning_s)
        await self._record("egress.learning.started", context, sandbox, until=f"{until_s:.3f}")
        self._enforcement.learn(sandbox, until_s)
        return egress_pb2.StartLearningResponse(expires_at=_timestamp(until_s))

    async def Enforce(  # noqa: N802 - named by the contract
        self, request: egress_pb2.EnforceRequest, context: Context
    ) -> egress_pb2.EnforceResponse:
        """End learning now."""
        sandbox = _sandbox(request.sandbox)
        await self._record("egress.learning.ended", context, sandbox)
        self._enforcement.learn(sandbox, 0.0)
        return egress_pb2.EnforceResponse()

    async def GetSandboxStatus(  # noqa: N802 - named by the contract
        self, request: egress_pb2.GetSandboxStatusRequest, _context: Context
    ) -> egress_pb2.GetSandboxStatusResponse:
        """Tell what is in force."""
        sandbox = _sandbox(request.sandbox)
        policy = self._enforcement.get(sandbox)
        distribution, refusal = self._enforcement.distribution(sandbox, self._subscriptions)
        return egress_pb2.GetSandboxStatusResponse(
            targets=[messages.target(entry) for entry in policy.entries],
            approvals=[
                egress_pb2.ActiveApproval(
                    id=item.id,
                    targets=[messages.target(entry) for entry in item.entries],
                    expires_at=_timestamp(item.expires_s),
                    reason=item.reason,
                    granted_by=item.granted_by,
                )
                for item in policy.approvals
            ],
            learning_until=_timestamp(policy.learning_until_s) if policy.learning_until_s else None,
            digest=policy.digest,
            distribution=egress_pb2.Distribution.ValueType(distribution),
            refusal=refusal,
        )

    async def ListTargets(  # noqa: N802 - named by the contract
        self, request: egress_pb2.ListTargetsRequest, _context: Context
    ) -> egress_pb2.ListTargetsResponse:
        """Return what was learned or refused."""
        sandbox = _sandbox(request.sandbox)
        self._enforcement.get(sandbox)
        tables = {
            egress_pb2.TARGET_KIND_LEARNED: self._decisions.learned,
            egress_pb2.TARGET_KIND_BLOCKED: self._decisions.blocked,
        }
        table = tables.get(request.kind)
        if table is None:
            raise InvalidInputError("target_kind_invalid", "kind must be LEARNED or BLOCKED")
        size = request.page_size or _DEFAULT_PAGE
        if not 1 <= size <= _MAX_PAGE:
            raise InvalidInputError("page_size_invalid", f"page_size is 1 to {_MAX_PAGE}, got {size}")
        seen, left_out = table.most_frequent(str(sandbox), size)
        return egress_pb2.ListTargetsResponse(
            targets=[messages.seen(item) for item in seen], left_out=left_out
        )

    async def ExplainUrl(  # noqa: N802 - named by the contract
        self, request: egress_pb2.ExplainUrlRequest, _context: Context
    ) -> egress_pb2.ExplainUrlResponse:
        """Tell which rule decides a URL."""
        policy = self._enforcement.get(_sandbox(request.sandbox))
        try:
            target = parse_url(request.url, request.method or "GET")
        except InvalidInputError as error:
            return egress_pb2.ExplainUrlResponse(
                reason=error.reason, message=error.message, next_step="write the URL in its plain form"
            )
        verdict = decide(policy, target, self._blocklist.match, self._clock_s())
        return egress_pb2.ExplainUrlResponse(
            allowed=verdict.allowed,
            reason=verdict.reason,
            rule=verdict.rule,
            message=verdict.message,
            next_step=verdict.next_step,
            host=target.host.text,
            port=target.port,
        )

    async def WatchDecisions(  # noqa: N802 - named by the contract
        self, request: egress_pb2.WatchDecisionsRequest, _context: Context
    ) -> AsyncIterator[egress_pb2.WatchDecisionsResponse]:
        """Stream decisions from now on."""
        wanted = str(_sandbox(request.sandbox)) if request.HasField("sandbox") else ""
        with self._decisions.watching() as watcher:
            while True:
                decision, missed = await watcher.next()
                if wanted in ("", decision.sandbox):
                    yield egress_pb2.WatchDecisionsResponse(
                        decision=messages.decision(decision), missed=missed
                    )

    async def GetBlocklist(  # noqa: N802 - named by the contract
        self, _request: egress_pb2.GetBlocklistRequest, _context: Context
    ) -> egress_pb2.GetBlocklistResponse:
        """Tell what is blocked, and how fresh it is."""
        distribution, _ = self._blocklist.distribution(self._subscriptions)
        return egress_pb2.GetBlocklistResponse(
            domains=len(self._blocklist),
            digest=self._blocklist.digest,
            feeds=[messages.feed(status) for status in self._blocklist.statuses()],
            distribution=egress_pb2.Distribution.ValueType(distribution),
        )

    async def _read_signed(
        self, sandbox: SandboxId, request: egress_pb2.ApplySandboxRequest
    ) -> tuple[tuple[Entry, ...], int]:
        if request.targets:
            raise InvalidInputError(
                "egress_policy_invalid", "targets and a signed allowlist exclude each other"
            )
        known = self._enforcement.policies.get(sandbox)
        least = 0 if known is None else known.allowlist_generation
        reference = request.allowlist
        found = await asyncio.to_thread(
            self._allowlists.read, reference.registry, reference.repository, reference.digest, least
        )
        return found.entries(), found.generation

    async def _record(self, kind: str, context: Context, sandbox: SandboxId, **fields: object) -> None:
        record = {"caller": str(caller(context)), "sandbox": str(sandbox), **fields}
        await self._audit.durable(self._audit.append(kind, record))


def _sandbox(reference: egress_pb2.SandboxRef) -> SandboxId:
    return SandboxId(reference.namespace, reference.name)


def _ttl_s(ttl: Duration, most_s: int) -> float:
    seconds = ttl.seconds + ttl.nanos / 1e9
    if not 1 <= seconds <= most_s:
        raise InvalidInputError("approval_ttl_invalid", f"the ttl is 1 to {most_s} seconds, got {seconds:g}")
    return seconds


def _timestamp(moment_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(moment_s * 1e9))
    return stamp
