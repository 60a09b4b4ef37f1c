"""Server-sent events as the chat-completions stream uses them: parse and write.

The parser takes bytes in any cut and bounds one event's size. Only `data:`
lines matter to this protocol; comments and other fields are dropped, so nothing
travels in them past the guards.
"""

DONE = b"data: [DONE]\n\n"


class EventTooLargeError(ValueError):
    """One event is larger than the parser accepts."""


class SseParser:
    """Turns bytes into the `data` of events."""

    __slots__ = ("_buffer", "_data", "_max_event_bytes", "_size")

    def __init__(self, max_event_bytes: int) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._max_event_bytes = max_event_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes and return the data of each event that they complete.

        Raises:
            EventTooLargeError: an event grows over the bound.
        """
        buffer = self._buffer
        if b"\n" not in chunk and b"\r" not in chunk and not buffer.endswith(b"\r"):
            buffer += chunk  # in place: a long line in small pieces is copied once, not once a piece
            if len(buffer) > self._max_event_bytes:
                raise EventTooLargeError
            return []
        text = bytes(buffer) + chunk if buffer else chunk
        if b"\r" in text:
            # A CR at the very end may be half of a CRLF: leave it for the next feed.
            tail = b"\r" if text.endswith(b"\r") else b""
            text = text[: len(text) - len(tail)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail
        *lines, rest = text.split(b"\n")
        if len(rest) > self._max_event_bytes:
            raise EventTooLargeError
        self._buffer = bytearray(rest)
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._size += len(value)
                if self._size > self._max_event_bytes:
                    raise EventTooLargeError
                self._data.append(value)
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data, self._size = [], 0
        return events

    @property
    def unfinished(self) -> bool:
        """True when the bytes so far end inside an event."""
        return bool(self._data or self._buffer)


def event(data: bytes) -> bytes:
    """Return one event; `data` must hold no line break (JSON by orjson does not)."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """Return a comment, which clients ignore; keeps a held connection alive."""
    return b": " + text.encode("ascii", "replace").replace(b"\n", b" ") + b"\n\n"
