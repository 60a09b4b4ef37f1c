"""The connection of one door to the relay: one stream at a time, for as long as the agent listens.

The agent's `deliver` opens an attachment; the attachment keeps a stream to the relay, opens another one (with
jitter) when it breaks, and ends when the relay ends it for good, when the agent goes, or when a newer one
takes over. Only the agent can prove its key, so each stream begins with the relay's hello passed to the agent
and its connect passed back.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kars.mesh.v1 import relay_pb2, relay_pb2_grpc
from kars_common.errors import (
    DeadlineExceededError,
    KarsError,
    ResourceExhaustedError,
    UnavailableError,
)
from kars_common.rpc import mapped_errors
from kars_common.tasks import Backoff

from kars_router.mesh.inbox import Inbox
from kars_router.mesh.inflight import lost
from kars_router.mesh.stream import BridgeParts, RelayStream

_LOG = logging.getLogger(__name__)
_MAX_WAITING_SUBMITS = 64
_TRY_AGAIN = frozenset(("slow_reader", "too_many_connections", "no_policy_in_force"))
"""Refusals after which another stream may do better; besides those where nobody was reached."""


@dataclass(frozen=True, kw_only=True)
class End:
    """Why an attachment ended."""

    reason: str
    message: str
    close_code: str = ""


class Bridge:
    """One door's way to the relay."""

    def __init__(self, parts: BridgeParts) -> None:
        self._parts = parts
        self._current: Attachment | None = None
        self.last_end: End | None = None

    def attach(self) -> "Attachment":
        """Begin an attachment; an older one ends."""
        if self._current is not None:
            self._current.end(End(reason="deliver_replaced", message="a newer deliver took over"))
        self._current = Attachment(self._parts, self._ended)
        return self._current

    @property
    def state(self) -> str:
        """`detached`, `connecting`, `greeted` or `attached`."""
        return "detached" if self._current is None else self._current.state

    @property
    def relay(self) -> str:
        """SPIFFE id that the relay says it has; empty without a stream."""
        return "" if self._current is None else self._current.relay

    async def connect(self, connect: relay_pb2.Connect) -> relay_pb2.Welcome:
        """Pass the agent's proof on and return the relay's welcome.

        Raises:
            KarsError: with the reason of the relay, or `mesh_not_attached`, `mesh_attached_already`.
        """
        return await self._require().connect(connect)

    async def submit(self, submissions: tuple[relay_pb2.Submission, ...]) -> list[relay_pb2.Refusal]:
        """Hand envelopes to the relay; returns when all are decided.

        Returns:
            Refusals, numbered within what was given, from 1.

        Raises:
            KarsError: `mesh_not_attached`, `mesh_receipt_timeout`, `too_many_submits`.
        """
        return await self._require().submit(submissions)

    async def acknowledge(self, frame: relay_pb2.AttachRequest) -> None:
        """Pass an acknowledgement on.

        Raises:
            UnavailableError: `mesh_not_attached`.
        """
        await self._require().acknowledge(frame)

    def close(self) -> None:
        """Begin to end what runs."""
        if self._current is not None:
            self._current.end(End(reason="router_stopping", message="the router stops"))

    def _require(self) -> "Attachment":
        if self._current is None:
            raise UnavailableError("mesh_not_attached", "open GET /mesh/v1/deliver first, and keep it open")
        return self._current

    def _ended(self, attachment: "Attachment", end: End) -> None:
        self.last_end = end
        if self._current is attachment:
            self._current = None


class Attachment:
    """One listening agent."""

    def __init__(self, parts: BridgeParts, on_end: Callable[["Attachment", End], None]) -> None:
        self.inbox = Inbox()
        self._parts = parts
        self._on_end = on_end
        self._stream: RelayStream | None = None
        self._ended = False
        self._waiting = 0
        self._task = asyncio.create_task(self._run(), name=f"mesh stream {parts.sandbox}")

    @property
    def state(self) -> str:
        """As `Bridge.state`."""
        return "connecting" if self._stream is None else self._stream.state

    @property
    def relay(self) -> str:
        """As `Bridge.relay`."""
        return "" if self._stream is None else self._stream.relay

    def end(self, end: End) -> None:
        """Begin to end; `close` waits for it."""
        if not self._ended:
            self._ended = True
            self._on_end(self, end)
            self.inbox.close()
            self._task.cancel()

    async def close(self) -> None:
        """End, and wait until the stream is gone."""
        self.end(End(reason="agent_left", message="the agent closed its deliver"))
        await asyncio.gather(self._task, return_exceptions=True)

    async def connect(self, connect: relay_pb2.Connect) -> relay_pb2.Welcome:
        """As `Bridge.connect`."""
        return await self._require().connect(connect)

    async def submit(self, submissions: tuple[relay_pb2.Submission, ...]) -> list[relay_pb2.Refusal]:
        """As `Bridge.submit`."""
        if self._waiting >= _MAX_WAITING_SUBMITS:
            raise ResourceExhaustedError(
                "too_many_submits", f"{_MAX_WAITING_SUBMITS} submits wait already; wait for their answers"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(self._parts.receipt_s):
                return await self._require().submit(submissions)
        except TimeoutError as exc:
            raise DeadlineExceededError(
                "mesh_receipt_timeout", "the relay did not confirm in time; submit the same envelopes again"
            ) from exc
        finally:
            self._waiting -= 1

    async def acknowledge(self, frame: relay_pb2.AttachRequest) -> None:
        """As `Bridge.acknowledge`."""
        await self._require().acknowledge(frame)

    def _require(self) -> "RelayStream":
        if self._stream is None:
            raise lost()
        return self._stream

    async def _run(self) -> None:
        """Keep a stream; ends by cancellation, or when the relay says that another try is in vain."""
        backoff = self._parts.backoff()
        while True:
            error = await self._once(backoff)
            if error.reason not in _TRY_AGAIN and not _of_transport(error):
                self._parts.records.event(
                    "mesh.ended", {"sandbox": self._parts.sandbox, "reason": error.reason}
                )
                code = error.metadata.get("close_code", "")
                self.end(End(reason=error.reason, message=error.message, close_code=code))
                return
            _LOG.info("mesh stream lost, connecting again", extra={"reason": error.reason})
            await backoff.wait()

    async def _once(self, backoff: Backoff) -> KarsError:
        """Keep one stream until it ends; returns why."""
        stream: RelayStream | None = None
        error: KarsError = lost()
        try:
            with mapped_errors():
                call = self._parts.open_relay().stub(relay_pb2_grpc.RelayStub).Attach()
                stream = RelayStream(call, self._parts, self.inbox)
                await stream.greet()
                self._stream = stream
                await stream.run(backoff)
        except KarsError as exc:
            error = exc
        finally:
            self._stream = None
            if stream is not None:
                stream.close(error)
        return error


def _of_transport(error: KarsError) -> bool:
    """Tell whether an error says that nobody was reached, and not that somebody refused."""
    return isinstance(error, UnavailableError | DeadlineExceededError)
