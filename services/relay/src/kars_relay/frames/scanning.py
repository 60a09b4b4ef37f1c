"""Cut a client's frame at field borders without decoding envelopes.

A serialised AttachRequest is walked once. Envelopes are checked to have exactly their two fields, so that
no bytes which a recipient's decoder would refuse are ever stored; what they hold is not looked at. The
bytes of a run of envelopes are forwarded as they came (measured: a sixth cheaper than decoding, and nothing
can change on the way). Everything that is not an envelope is left to protobuf.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from kars.mesh.v1 import relay_pb2

ID_BYTES = 16
MAX_TO_BYTES = 512
MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_TTL_S = 2**31 - 1

_SUBMISSION = 0x0A
_ACK = 0x18
_TO = 0x0A
_ENVELOPE = 0x12
_TTL = 0x18
_ID_HEAD = b"\x0a\x10"
_PAYLOAD = 0x12


class FrameError(Exception):
    """The bytes are no frame of the contract."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Run:
    """Envelopes for one recipient, in order: one Submission as bytes."""

    to: bytes
    body: bytes
    """The serialised `envelopes` fields, one after another."""
    ids: list[bytes]
    ends: list[int]
    """Where in `body` each envelope's field ends."""
    ttl_s: int
    largest: int
    """The largest payload, in bytes."""


@dataclass(slots=True)
class Frame:
    """One AttachRequest."""

    runs: Sequence[Run]
    ack_through: int
    rest: relay_pb2.AttachRequest | None
    """All other fields; None when there are none."""


def scan(frame: bytes) -> Frame:
    """Take a frame apart.

    Raises:
        FrameError: `frame_too_large` or `frame_malformed`.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise FrameError("frame_too_large", f"a frame has at most {MAX_FRAME_BYTES} bytes, got {len(frame)}")
    runs: list[Run] = []
    ack = 0
    place, end = 0, len(frame)
    try:
        while place < end:
            tag = frame[place]
            if tag == _SUBMISSION:
                size, start = _varint(frame, place + 1)
                place = start + size
                runs.append(_submission(frame, start, _within(place, end)))
            elif tag == _ACK:
                ack, place = _varint(frame, place + 1)
            else:
                return _with_rest(runs, ack, frame[place:])
    except IndexError:
        raise _malformed("it ends in the middle of a field") from None
    if ack >> 63:
        raise _malformed("ack_through is above 2^63-1")
    return Frame(runs, ack, None)


def scan_submission(submission: bytes) -> Run:
    """Take one serialised Submission apart.

    Raises:
        FrameError: as `scan`.
    """
    if len(submission) > MAX_FRAME_BYTES:
        raise FrameError("frame_too_large", f"a submission has at most {MAX_FRAME_BYTES} bytes")
    try:
        return _submission(submission, 0, len(submission))
    except IndexError:
        raise _malformed("it ends in the middle of a field") from None


def cut(body: bytes) -> list[int]:
    """Return where each envelope of a stored run ends."""
    ends: list[int] = []
    place = 0
    while place < len(body):
        size, start = _varint(body, place + 1)
        place = start + size
        ends.append(place)
    return ends


def _with_rest(runs: Sequence[Run], ack: int, tail: bytes) -> Frame:
    # Control fields come seldom; protobuf judges them.
    try:
        rest = relay_pb2.AttachRequest.FromString(tail)
    except DecodeError:
        raise _malformed("it is no AttachRequest") from None
    if rest.submissions:
        raise _malformed("submissions must come before other fields")
    if (ack and rest.ack_through) or rest.ack_through >> 63:
        raise _malformed("ack_through is given twice or above 2^63-1")
    return Frame(runs, ack or rest.ack_through, rest)


def _submission(frame: bytes, place: int, end: int) -> Run:
    """Walk one Submission; the caller turns an index beyond the frame into a refusal."""
    if frame[place] != _TO:
        raise _malformed("a submission begins with its recipient")
    size, start = _varint(frame, place + 1)
    place = _within(start + size, end)
    if not 0 < size <= MAX_TO_BYTES:
        raise _malformed(f"a recipient has 1 to {MAX_TO_BYTES} bytes, got {size}")
    to = frame[start:place]
    first = place
    ids: list[bytes] = []
    ends: list[int] = []
    largest = 0
    while place < end and frame[place] == _ENVELOPE:
        size, start = _varint(frame, place + 1)
        begun, place = place, start + size
        if place > end or frame[start : start + 2] != _ID_HEAD or frame[start + 18] != _PAYLOAD:
            raise _malformed("an envelope has exactly an id of 16 bytes and a payload")
        payload, body = _varint(frame, start + 19)
        if body + payload != place or payload == 0:
            raise _malformed("an envelope has exactly an id of 16 bytes and a payload")
        largest = max(largest, payload)
        ids.append(frame[start + 2 : start + 18])
        ends.append(place - first)
        # Padded envelopes are alike but for id and payload: the next pass by comparing what is between.
        head, tail, whole = frame[begun : start + 2], frame[start + 18 : body], place - begun
        id_place, tail_place, tail_end = start + 2 - begun, start + 18 - begun, body - begun
        while (
            place + whole <= end
            and frame[place : place + id_place] == head
            and frame[place + tail_place : place + tail_end] == tail
        ):
            ids.append(frame[place + id_place : place + tail_place])
            place += whole
            ends.append(place - first)
    if not ids:
        raise _malformed("a submission has at least one envelope")
    body_end = place
    ttl_s = 0
    if place < end and frame[place] == _TTL:
        ttl_s, place = _varint(frame, place + 1)
    if place != end:
        raise _malformed("a submission has recipient, envelopes and ttl_s, in this order")
    return Run(to, frame[first:body_end], ids, ends, min(ttl_s, MAX_TTL_S), largest)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return an unsigned varint and where it ends."""
    value = data[place]
    place += 1
    if value < 0x80:
        return value, place
    byte = data[place]
    place += 1
    value = (value & 0x7F) | (byte & 0x7F) << 7
    shift = 14
    while byte & 0x80:
        if shift > 63:
            raise _malformed("a number has more than ten bytes")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, place


def _within(place: int, end: int) -> int:
    if place > end:
        raise _malformed("a field reaches beyond its message")
    return place


def _malformed(what: str) -> FrameError:
    return FrameError("frame_malformed", f"frame is malformed: {what}")
