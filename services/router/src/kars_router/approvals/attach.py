"""Publish holds to the controller and bring its decisions back (`Approvals.Attach`).

Forgets nothing while the controller is away: at each connection everything that
is still held is published again. Never decides.
"""

import asyncio
import logging
from collections import deque

import grpc
from kars.governance.v1 import governance_pb2, governance_pb2_grpc
from kars_common.errors import KarsError, UnavailableError, clean_text
from kars_common.rpc import PeerChannel
from kars_common.tasks import Backoff

from kars_router.approvals.holds import HoldRegistry

_log = logging.getLogger(__name__)
_MAX_UNSENT = 1024
_WRITE_TIMEOUT_S = 10.0
# A stream ends by itself now and then, so that the next one proves a fresh identity.
_STREAM_LIFE_S = 20 * 60.0


_Stream = grpc.aio.StreamStreamCall[governance_pb2.AttachRequest, governance_pb2.AttachResponse]


class ControllerBoard:
    """The holds of one sandbox on the controller's board. One `run` at a time."""

    def __init__(self, channel: PeerChannel, namespace: str, name: str, holds: HoldRegistry) -> None:
        self._stub = channel.stub(governance_pb2_grpc.ApprovalsStub)
        self._namespace = namespace
        self._name = name
        self._sandbox = f"{namespace}/{name}"
        self._holds = holds
        # The oldest is dropped when full: what is still pending is sent again at the next connection.
        self._unsent: deque[governance_pb2.AttachRequest] = deque(maxlen=_MAX_UNSENT)
        self._woken = asyncio.Event()

    def publish(self, approval: governance_pb2.Approval) -> None:
        """Show a new hold."""
        self._send(governance_pb2.AttachRequest(pending=approval))

    def close(self, approval: governance_pb2.Approval) -> None:
        """Say that a hold ended here."""
        closed = governance_pb2.ApprovalClosed(id=approval.id, state=approval.state)
        self._send(governance_pb2.AttachRequest(closed=closed))

    async def run(self) -> None:
        """Stay connected for ever; ends only by cancellation."""
        backoff = Backoff()
        while True:
            try:
                async with asyncio.timeout(_STREAM_LIFE_S):
                    await self._attach_once(backoff)
            except TimeoutError:
                continue
            except grpc.aio.AioRpcError as exc:
                _log.warning("approvals are not connected", extra={"code": exc.code().name})
            except (KarsError, asyncio.InvalidStateError) as exc:
                _log.warning("approvals are not connected", extra={"error": clean_text(str(exc))})
            await backoff.wait()

    def _send(self, message: governance_pb2.AttachRequest) -> None:
        self._unsent.append(message)
        self._woken.set()

    async def _attach_once(self, backoff: Backoff) -> None:
        call = self._stub.Attach()
        tasks: list[asyncio.Task[None]] = []
        try:
            hello = governance_pb2.AttachRequest()
            hello.sandbox.namespace, hello.sandbox.name = self._namespace, self._name
            await self._write(call, hello)
            # Ends of holds that nobody saw stay queued; what is pending is sent afresh.
            kept = [message for message in self._unsent if message.WhichOneof("message") == "closed"]
            self._unsent.clear()
            for approval in self._holds.pending(self._sandbox):
                await self._write(call, governance_pb2.AttachRequest(pending=approval))
            self._unsent.extend(kept)
            self._woken.set()
            backoff.reset()
            tasks.append(asyncio.create_task(self._write_all(call), name="publish approvals"))
            tasks.append(asyncio.create_task(self._read_all(call), name="read approval decisions"))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise UnavailableError("approvals_stream_ended", "the controller ended the approvals stream")

    async def _write_all(self, call: "_Stream") -> None:
        while True:
            self._woken.clear()
            while self._unsent:
                await self._write(call, self._unsent[0])
                self._unsent.popleft()
            await self._woken.wait()

    async def _read_all(self, call: "_Stream") -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            if not isinstance(response, governance_pb2.AttachResponse):
                return
            decided = response.decided
            if not self._holds.decide(self._sandbox, decided):
                _log.info("a decision came for nothing that is held", extra={"approval": decided.id[:64]})

    @staticmethod
    async def _write(call: "_Stream", message: governance_pb2.AttachRequest) -> None:
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await call.write(message)
