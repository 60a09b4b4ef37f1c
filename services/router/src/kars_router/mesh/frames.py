"""Frames of the agent: read within limits, refused when they say more than their route is for.

Payloads are bytes here and stay so. What the relay checks (ids, order of fields) is left to it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from kars.mesh.v1 import relay_pb2

from kars_router.mesh.access import peer_name

MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_ENVELOPES = 4096
MAX_RECIPIENTS = 64
CHUNK_ENVELOPES = 64
CHUNK_BYTES = 256 * 1024
_ACK_FIELDS = frozenset(("ack_through", "window", "sealed_access"))


class FrameError(Exception):
    """A frame that is refused; `code` for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """All envelopes of one request for one recipient."""

    recipient: str
    submissions: tuple[relay_pb2.Submission, ...]
    numbers: tuple[int, ...]
    """Number of each envelope in the agent's request, from 1."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(len(item.payload) for run in self.submissions for item in run.envelopes)


def parse(body: bytes) -> relay_pb2.AttachRequest:
    """Return the frame in a body.

    Raises:
        FrameError: `frame_malformed`.
    """
    try:
        return relay_pb2.AttachRequest.FromString(body)
    except DecodeError:
        raise FrameError("frame_malformed", "the body is no AttachRequest") from None


def is_connect(frame: relay_pb2.AttachRequest) -> bool:
    """Tell whether a frame connects, and does nothing else.

    Raises:
        FrameError: `frame_malformed`: it connects and does something else.
    """
    fields = _fields(frame)
    if "connect" not in fields:
        return False
    if fields != {"connect"}:
        raise FrameError("frame_malformed", "a frame with connect carries nothing else")
    return True


def check_ack(frame: relay_pb2.AttachRequest) -> None:
    """Refuse an acknowledgement that carries something else.

    Raises:
        FrameError: `frame_malformed`.
    """
    if not _fields(frame) <= _ACK_FIELDS:
        raise FrameError("frame_malformed", "ack takes ack_through, window and sealed_access only")


def outgoing(frame: relay_pb2.AttachRequest) -> tuple[Outgoing, ...]:
    """Return the submissions of a frame by recipient, in the order of their first one.

    Raises:
        FrameError: `frame_malformed`, `frame_empty`, `recipient_invalid`, `too_many_envelopes`.
    """
    if _fields(frame) - {"submissions"}:
        raise FrameError("frame_malformed", "submit takes submissions, or connect alone")
    runs: dict[str, list[tuple[relay_pb2.Submission, range]]] = {}
    number = 1
    for submission in frame.submissions:
        if peer_name(submission.to) is None:
            raise FrameError("recipient_invalid", "a recipient is named by its SPIFFE id")
        if not submission.envelopes:
            raise FrameError("frame_malformed", "a submission holds at least one envelope")
        end = number + len(submission.envelopes)
        runs.setdefault(submission.to, []).append((submission, range(number, end)))
        number = end
    if number == 1:
        raise FrameError("frame_empty", "there is nothing in this frame to submit")
    if number - 1 > MAX_ENVELOPES or len(runs) > MAX_RECIPIENTS:
        raise FrameError(
            "too_many_envelopes",
            f"one request carries at most {MAX_ENVELOPES} envelopes for {MAX_RECIPIENTS} recipients",
        )
    return tuple(
        Outgoing(
            recipient=recipient,
            submissions=tuple(submission for submission, _ in listed),
            numbers=tuple(number for _, numbers in listed for number in numbers),
        )
        for recipient, listed in runs.items()
    )


def chunks(submissions: Iterable[relay_pb2.Submission]) -> Iterator[relay_pb2.Submission]:
    """Cut submissions into runs that fit one turn of the relay's stream."""
    for submission in submissions:
        run = relay_pb2.Submission(to=submission.to, ttl_s=submission.ttl_s)
        size = 0
        for envelope in submission.envelopes:
            if run.envelopes and (
                len(run.envelopes) >= CHUNK_ENVELOPES or size + len(envelope.payload) > CHUNK_BYTES
            ):
                yield run
                run, size = relay_pb2.Submission(to=submission.to, ttl_s=submission.ttl_s), 0
            run.envelopes.append(envelope)
            size += len(envelope.payload)
        yield run


def _fields(frame: relay_pb2.AttachRequest) -> set[str]:
    return {field.name for field, _ in frame.ListFields()}
