"""What two agents say to each other inside a session: data, acknowledgements, a request to send again.

    data    = 1 | stream (8) | number | sent at (ms) | kind | body
    ack     = 2 | stream (8) | how many | numbers
    resend  = 3

A stream is one sender's row of numbered messages to one peer; it begins anew when the sender lost its state.
"""

import re
from dataclasses import dataclass

from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import MalformedError, PayloadError

STREAM_BYTES = 8
MAX_BODY_BYTES = 1024 * 1024
MAX_ACKS = 512
KIND = re.compile(r"[a-z0-9][a-z0-9./+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Data:
    """One message of the application."""

    stream: bytes
    number: int
    sent_at_ms: int
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """These were decrypted and are kept."""

    stream: bytes
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Resend:
    """The sender of this could not read something: send again what was not acknowledged."""


Frame = Data | Ack | Resend


def encode(frame: Frame) -> bytes:
    """Return a frame's bytes.

    Raises:
        PayloadError: `kind_invalid`, `body_too_large`.
    """
    if isinstance(frame, Data):
        if not KIND.fullmatch(frame.kind):
            raise PayloadError(
                "kind_invalid", f"a kind has 1 to 64 of a-z 0-9 . / + -, got {frame.kind[:64]!r}"
            )
        if len(frame.body) > MAX_BODY_BYTES:
            raise PayloadError("body_too_large", f"a message has at most {MAX_BODY_BYTES} bytes: send a file")
        writer = Writer().u8(1).raw(frame.stream).u64(frame.number).u64(frame.sent_at_ms)
        return writer.text(frame.kind).raw(frame.body).bytes()
    if isinstance(frame, Ack):
        writer = Writer().u8(2).raw(frame.stream).u32(len(frame.numbers))
        for number in frame.numbers:
            writer.u64(number)
        return writer.bytes()
    return b"\x03"


def decode(data: bytes) -> Frame:
    """Read a frame.

    Raises:
        MalformedError: it is none.
    """
    reader = Reader(data, what="frame", max_bytes=MAX_BODY_BYTES + 256)
    kind = reader.u8()
    if kind == 1:
        stream, number, sent_at_ms = reader.raw(STREAM_BYTES), reader.u64(), reader.u64()
        name = reader.text(64)
        if not KIND.fullmatch(name):
            raise MalformedError("kind_invalid", "a message's kind is not a valid word")
        return Data(stream, number, sent_at_ms, name, reader.rest())
    if kind == 2:
        stream, count = reader.raw(STREAM_BYTES), reader.u32()
        if count > MAX_ACKS:
            raise MalformedError("too_many_acks", f"an acknowledgement has at most {MAX_ACKS} numbers")
        numbers = tuple(reader.u64() for _ in range(count))
        reader.end()
        return Ack(stream, numbers)
    if kind == 3:
        reader.end()
        return Resend()
    raise MalformedError("frame_unknown", f"a frame of kind {kind} is not known")
