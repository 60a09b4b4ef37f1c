"""Write the frames that carry envelopes to their recipient.

Only the frame around the envelopes is made here; their bytes are copied as they were stored. The result is
what protobuf would have written for the same AttachResponse.
"""

MAX_BATCH_ENVELOPES = 64
MAX_BATCH_BYTES = 256 * 1024


def delivery(sender: bytes, body: bytes, first_seq: int, stored_at_ms: int) -> bytes:
    """Return one `AttachResponse.deliveries` field."""
    head = b"\x0a" + varint(len(sender)) + sender if sender else b""
    tail = b"\x18" + varint(first_seq) + b"\x20" + varint(stored_at_ms)
    return b"".join((b"\x0a", varint(len(head) + len(body) + len(tail)), head, body, tail))


def varint(value: int) -> bytes:
    """Return an unsigned varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
