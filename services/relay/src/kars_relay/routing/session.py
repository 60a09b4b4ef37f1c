"""One attached peer: frames in, frames out, and what is under way in between.

The handler's own task reads; one task writes. Reading stops while more is undecided than the client may
have in flight, so a client that ignores its window is held by HTTP/2 flow control and costs no memory.
Writing stops while more is unacknowledged than the client's window; a client that does not read what it was
sent within the stall limit is ended, and what it did not acknowledge waits in its mailbox.

Knows no gRPC: a transport reads and writes bytes.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kars.mesh.v1 import relay_pb2
from kars_common.errors import (
    ConflictError,
    InvalidInputError,
    KarsError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

from kars_relay.frames import MAX_BATCH_BYTES, MAX_BATCH_ENVELOPES, Frame, FrameError, delivery, scan
from kars_relay.mailbox import MailboxStore, Reader
from kars_relay.metrics import RelayMetrics
from kars_relay.routing.exchange import Accepted, Exchange, Refusal, Sender

_LOG = logging.getLogger(__name__)
_FLUSH_S = 5.0
_DEFAULT_WINDOW = (256, 1024 * 1024)
_MAX_WINDOW = (4096, 8 * 1024 * 1024)
_MIN_WINDOW_BYTES = 64 * 1024


class Transport(Protocol):
    """The two directions of a stream."""

    async def read(self) -> bytes | None:
        """Return the next frame; None when the client will send no more."""

    async def write(self, frame: bytes) -> None:
        """Send a frame; waits while the client does not read."""


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """Bounds of one session."""

    max_in_flight_envelopes: int = 512
    max_in_flight_bytes: int = 4 * 1024 * 1024
    stall_s: float = 30.0
    """How long a write may wait for a client that does not read."""


class Session:
    """Runs one attached peer until it leaves or is ended."""

    def __init__(
        self,
        peer: str,
        sender: Sender,
        *,
        exchange: Exchange,
        transport: Transport,
        limits: SessionLimits,
        metrics: RelayMetrics,
    ) -> None:
        self.peer = peer
        self._sender = sender
        self._exchange = exchange
        self._store: MailboxStore = exchange.store
        self._transport = transport
        self._limits = limits
        self._metrics = metrics
        self._window = _DEFAULT_WINDOW
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._error: KarsError | None = None
        self._scope: asyncio.Timeout | None = None
        self._reader: Reader | None = None
        # Towards the relay: numbers of envelopes.
        self._submitted = 0
        self._undecided_bytes = 0
        self._undecided: deque[tuple[int, int, Accepted]] = deque()
        self._decided = 0
        self._told = 0
        self._refusals: list[Refusal] = []
        # Towards the client: sequence numbers of the mailbox.
        self._delivered_through = 0
        self._unacked: deque[tuple[int, int, int]] = deque()
        self._unacked_envelopes = 0
        self._unacked_bytes = 0
        self._notice: relay_pb2.Notice | None = None

    def set_window(self, window: relay_pb2.Window) -> None:
        """Take the client's delivery window, within the relay's own bounds.

        Raises:
            InvalidInputError: `frame_malformed`.
        """
        envelopes = window.max_envelopes or _DEFAULT_WINDOW[0]
        size = window.max_bytes or _DEFAULT_WINDOW[1]
        if envelopes > _MAX_WINDOW[0] or not _MIN_WINDOW_BYTES <= size <= _MAX_WINDOW[1]:
            raise InvalidInputError("frame_malformed", "a window has 1 to 4096 envelopes and 64 KiB to 8 MiB")
        self._window = (envelopes, size)
        self._wake.set()

    async def run(self, welcome: bytes, valid_until: float) -> None:
        """Serve until the client leaves.

        Args:
            welcome: the first frame to send.
            valid_until: loop time at which the peer's statement ends.

        Raises:
            KarsError: why the relay ended it.
        """
        self._reader = await self._store.reader(self.peer, self._wake.set, self.replaced)
        self._wake.set()
        writer = asyncio.create_task(self._write_frames(welcome), name=f"write to {self.peer}")
        try:
            async with asyncio.timeout_at(valid_until) as scope:
                self._scope = scope
                if self._error is not None:
                    scope.reschedule(asyncio.get_running_loop().time())
                await self._read_frames()
                await self._flush()
        except TimeoutError:
            if self._scope is None or not self._scope.expired():
                raise
            raise self._error or UnauthenticatedError(
                "identity_statement_expired", "attach again with a fresh identity statement"
            ) from None
        finally:
            self._reader.close()
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(asyncio.gather(writer, return_exceptions=True))

    def end(self, error: KarsError) -> None:
        """End the session from outside, with a reason; the first one counts."""
        if self._error is None:
            self._error = error
        if self._scope is not None:
            with contextlib.suppress(RuntimeError):  # it is over already
                self._scope.reschedule(asyncio.get_running_loop().time())

    def replaced(self) -> None:
        """End the session because the peer attached again."""
        message = "another connection of this peer took over"
        self.end(ConflictError("peer_replaced", message, {"close_code": "4006"}))

    def notice(self, notice: relay_pb2.Notice) -> None:
        """Tell the client something with the next frame."""
        self._notice = notice
        self._wake.set()

    # --- from the client ----------------------------------------------------------------------------------

    async def _read_frames(self) -> None:
        limits = self._limits
        while (data := await self._transport.read()) is not None:
            try:
                frame = scan(data)
            except FrameError as exc:
                self._metrics.malformed()
                raise InvalidInputError(exc.reason, str(exc)) from None
            if frame.rest is not None:
                await self._control(frame)
            if frame.ack_through:
                self._ack(frame.ack_through)
            if not frame.runs:
                continue
            await self._accept(frame, len(data))
            while (
                self._submitted - self._decided > limits.max_in_flight_envelopes
                or self._undecided_bytes > limits.max_in_flight_bytes
            ):
                self._room.clear()
                await self._room.wait()
            await self._store.room()

    async def _accept(self, frame: Frame, size: int) -> None:
        accepted = await self._exchange.accept(self._sender, frame.runs, self._submitted + 1)
        self._submitted += sum([len(run.ids) for run in frame.runs])
        self._undecided.append((self._submitted, size, accepted))
        self._undecided_bytes += size
        if accepted.stored is None:
            self._decide()
        else:
            accepted.stored.add_done_callback(self._decide)

    def _decide(self, _done: object = None) -> None:
        """Move what is decided, in order, into the next receipt."""
        while self._undecided:
            through, size, accepted = self._undecided[0]
            if accepted.stored is not None and not accepted.stored.done():
                break
            self._undecided.popleft()
            self._undecided_bytes -= size
            try:
                refused = accepted.stored_refusals()
            except KarsError as error:
                self.end(error)
                return
            if refused:
                self._exchange.count(self._sender, refused)
            self._refusals += sorted(accepted.refusals + refused)
            self._decided = through
        self._room.set()
        self._wake.set()

    async def _control(self, frame: Frame) -> None:
        rest = frame.rest
        assert rest is not None
        if rest.HasField("connect"):
            raise InvalidInputError("connect_repeated", "connect belongs into the first frame only")
        if rest.HasField("window"):
            self.set_window(rest.window)
        if rest.HasField("sealed_access"):
            token = rest.sealed_access.token_sha256
            if len(token) not in (0, 32):
                raise InvalidInputError("frame_malformed", "token_sha256 has 32 bytes, or none")
            await self._store.set_token(self.peer, token)

    def _ack(self, through: int) -> None:
        if through > self._delivered_through:
            raise InvalidInputError("ack_out_of_range", f"{through} was never delivered on this connection")
        while self._unacked and self._unacked[0][0] <= through:
            _, count, size = self._unacked.popleft()
            self._unacked_envelopes -= count
            self._unacked_bytes -= size
        self._store.ack(self.peer, through)
        self._wake.set()

    async def _flush(self) -> None:
        """Give a client that has said its last word the receipts it waits for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                while self._undecided or self._told < self._decided:
                    self._room.clear()
                    await self._room.wait()

    # --- to the client ------------------------------------------------------------------------------------

    async def _write_frames(self, frame: bytes) -> None:
        try:
            while True:
                async with asyncio.timeout(self._limits.stall_s):
                    await self._transport.write(frame)
                while not (frame := self._next_frame()):
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            self.end(
                ResourceExhaustedError(
                    "slow_reader", "the client did not read what it was sent", {"close_code": "4004"}
                )
            )
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001  # the boundary of this task: a transport that broke ends the session
            _LOG.debug("attachment broke", exc_info=True)
            self.end(UnavailableError("transport_broken", "the connection broke"))

    def _next_frame(self) -> bytes:
        parts: list[bytes] = []
        room = min(MAX_BATCH_ENVELOPES, self._window[0] - self._unacked_envelopes)
        size = min(MAX_BATCH_BYTES, self._window[1] - self._unacked_bytes)
        assert self._reader is not None
        if room > 0 and (size > 0 or not self._unacked):
            for run in self._reader.take(room, size):
                parts.append(delivery(run.sender.encode(), run.body, run.first_seq, run.stored_at_ms))
                self._unacked.append((run.last_seq, run.count, len(run.body)))
                self._unacked_envelopes += run.count
                self._unacked_bytes += len(run.body)
                self._delivered_through = run.last_seq
        if self._told < self._decided or self._notice is not None:
            parts.append(self._control_part())
        return b"".join(parts)

    def _control_part(self) -> bytes:
        response = relay_pb2.AttachResponse()
        if self._told < self._decided:
            response.receipt.decided_through = self._decided
            response.receipt.refusals.extend(_refusals(self._refusals))
            self._told = self._decided
            self._refusals = []
            self._room.set()
        if self._notice is not None:
            response.notice.CopyFrom(self._notice)
            self._notice = None
        return response.SerializeToString()


def _refusals(refusals: Sequence[Refusal]) -> list[relay_pb2.Refusal]:
    return [
        relay_pb2.Refusal(
            number=refusal.number,
            count=refusal.count,
            reason=refusal.reason,  # type: ignore[arg-type]  # a number from the enum
            retry_after_ms=refusal.retry_after_ms,
        )
        for refusal in refusals
    ]
