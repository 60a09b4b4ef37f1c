"""Connected enforcement points: each hears the final decisions on its own sandbox's holds."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from kars.governance.v1 import governance_pb2

from kars_controller.approvals.registry import DENIED, GRANTED, ApprovalRegistry
from kars_controller.platforms.base import SandboxKey

Decisions = asyncio.Queue[governance_pb2.Approval]
_MAX_QUEUED = 1024


class Attachments:
    """Routes decisions to whoever holds the call."""

    def __init__(self, registry: ApprovalRegistry) -> None:
        self._queues: dict[SandboxKey, list[Decisions]] = {}
        registry.listen(self._changed)

    @contextmanager
    def open(self, sandbox: SandboxKey) -> Iterator[Decisions]:
        """Hear decisions on a sandbox's holds for the length of the block."""
        queue: Decisions = asyncio.Queue(_MAX_QUEUED)
        self._queues.setdefault(sandbox, []).append(queue)
        try:
            yield queue
        finally:
            queues = self._queues[sandbox]
            queues.remove(queue)
            if not queues:
                del self._queues[sandbox]

    def _changed(self, approval: governance_pb2.Approval) -> None:
        if approval.state not in (GRANTED, DENIED):
            return
        for queue in self._queues.get(SandboxKey(approval.sandbox.namespace, approval.sandbox.name), ()):
            # A full queue is a router that stopped reading; it learns the decision when it attaches again.
            if not queue.full():
                queue.put_nowait(approval)
