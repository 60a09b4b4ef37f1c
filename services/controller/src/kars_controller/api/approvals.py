"""The Approvals service: routers attach with what they hold, operators list, watch and decide."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from kars.governance.v1 import governance_pb2, governance_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.errors import InvalidInputError, ResourceExhaustedError
from kars_common.rpc import caller

from kars_controller.api.callers import own_sandbox
from kars_controller.approvals import ApprovalRegistry, Attachments
from kars_controller.approvals.registry import DENIED, GRANTED
from kars_controller.platforms.base import SandboxKey

_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_MAX_WATCH_BACKLOG = 1024
_CLOSED = (GRANTED, DENIED)

Context = Any


class ApprovalsServicer(governance_pb2_grpc.ApprovalsServicer):
    """Serves the registry."""

    def __init__(self, registry: ApprovalRegistry, attachments: Attachments, audit: AuditLog) -> None:
        self._registry = registry
        self._attachments = attachments
        self._audit = audit

    async def Attach(  # noqa: N802 - named by the contract
        self, requests: AsyncIterator[governance_pb2.AttachRequest], context: Context
    ) -> AsyncIterator[governance_pb2.AttachResponse]:
        """Take holds from a router and give it decisions."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "sandbox":
            raise InvalidInputError("attach_invalid", "the first message must be sandbox")
        sandbox = own_sandbox(first.sandbox, caller(context))
        with self._attachments.open(sandbox) as decisions:
            reader = asyncio.create_task(
                self._take_holds(requests, sandbox, decisions), name=f"approvals of {sandbox}"
            )
            try:
                while not reader.done():
                    decided = await _next_decision(decisions, reader)
                    if decided is not None:
                        yield governance_pb2.AttachResponse(decided=decided)
                reader.result()
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def ListApprovals(  # noqa: N802 - named by the contract
        self, request: governance_pb2.ListApprovalsRequest, _context: Context
    ) -> governance_pb2.ListApprovalsResponse:
        """Return one page of approvals, newest first; the token is the last id of the page before."""
        size = request.page_size or _DEFAULT_PAGE
        if not 1 <= size <= _MAX_PAGE:
            raise InvalidInputError("page_size_invalid", f"page_size is 1 to {_MAX_PAGE}, got {size}")
        listed = self._registry.list_newest(request.namespace, include_closed=request.include_closed)
        if request.page_token:
            listed = [item for item in listed if item.id < request.page_token]
        page, more = listed[:size], len(listed) > size
        return governance_pb2.ListApprovalsResponse(
            approvals=page, next_page_token=page[-1].id if more else ""
        )

    async def WatchApprovals(  # noqa: N802 - named by the contract
        self, request: governance_pb2.WatchApprovalsRequest, _context: Context
    ) -> AsyncIterator[governance_pb2.WatchApprovalsResponse]:
        """Stream what is pending, then every change."""
        changes: asyncio.Queue[governance_pb2.Approval] = asyncio.Queue()
        unlisten = self._registry.listen(changes.put_nowait)
        try:
            for approval in reversed(self._registry.list_newest(request.namespace)):
                yield governance_pb2.WatchApprovalsResponse(approval=approval)
            while True:
                approval = await changes.get()
                if changes.qsize() > _MAX_WATCH_BACKLOG:
                    raise ResourceExhaustedError("watch_too_slow", "the watcher fell behind; watch again")
                if request.namespace in ("", approval.sandbox.namespace):
                    yield governance_pb2.WatchApprovalsResponse(approval=approval)
        finally:
            unlisten()

    async def DecideApproval(  # noqa: N802 - named by the contract
        self, request: governance_pb2.DecideApprovalRequest, context: Context
    ) -> governance_pb2.DecideApprovalResponse:
        """Grant or deny; on record before anybody acts on it."""
        operator = caller(context)
        fields = {"operator": str(operator), "approval": request.id[:64], "grant": request.grant}
        await self._audit.durable(self._audit.append("approval.decision", fields))
        approval = self._registry.decide(request.id, operator, grant=request.grant, note=request.note)
        outcome = {
            **fields,
            "approval": approval.id,
            "sandbox": f"{approval.sandbox.namespace}/{approval.sandbox.name}",
            "action": approval.action,
            "state": governance_pb2.ApprovalState.Name(approval.state),
            "granted_by": list(approval.granted_by),
        }
        self._audit.append("approval.counted", outcome)
        return governance_pb2.DecideApprovalResponse(approval=approval)

    async def _take_holds(
        self,
        requests: AsyncIterator[governance_pb2.AttachRequest],
        sandbox: SandboxKey,
        decisions: asyncio.Queue[governance_pb2.Approval],
    ) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "pending":
                approval = self._registry.publish(sandbox, request.pending)
                if approval.state in _CLOSED:  # decided while the router was away
                    await decisions.put(approval)
            elif kind == "closed":
                self._registry.close(sandbox, request.closed.id, request.closed.state)
            else:
                raise InvalidInputError("attach_invalid", "after sandbox, only pending or closed")


async def _next_decision(
    decisions: asyncio.Queue[governance_pb2.Approval], reader: asyncio.Task[None]
) -> governance_pb2.Approval | None:
    """Wait for a decision; None when the router stopped talking first."""
    decided = asyncio.create_task(decisions.get(), name="next decision")
    try:
        await asyncio.wait({decided, reader}, return_when=asyncio.FIRST_COMPLETED)
        return decided.result() if decided.done() else None
    finally:
        decided.cancel()
        await asyncio.gather(decided, return_exceptions=True)
