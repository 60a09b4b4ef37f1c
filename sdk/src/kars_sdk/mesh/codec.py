"""A bounded binary codec: the only reader of bytes that a stranger wrote.

Integers are big-endian; a variable field is preceded by its length. The reader never reads past the end,
never allocates more than the field's own limit, and a complete message leaves nothing over.
"""

from kars_sdk.mesh.errors import MalformedError


class Writer:
    """Builds one message."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, value: bytes) -> "Writer":
        """Append bytes whose length the format fixes."""
        self._parts.append(value)
        return self

    def u8(self, value: int) -> "Writer":
        """Append one byte."""
        return self.raw(value.to_bytes(1, "big"))

    def u32(self, value: int) -> "Writer":
        """Append four bytes."""
        return self.raw(value.to_bytes(4, "big"))

    def u64(self, value: int) -> "Writer":
        """Append eight bytes."""
        return self.raw(value.to_bytes(8, "big"))

    def variable(self, value: bytes) -> "Writer":
        """Append a length of four bytes, and that many bytes."""
        return self.u32(len(value)).raw(value)

    def text(self, value: str) -> "Writer":
        """Append UTF-8, with its length."""
        return self.variable(value.encode())

    def bytes(self) -> bytes:
        """Return the message."""
        return b"".join(self._parts)


class Reader:
    """Reads one message; every method raises MalformedError instead of reading what is not there."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, *, what: str, max_bytes: int) -> None:
        """Start at the beginning.

        Raises:
            MalformedError: `too_large`.
        """
        if len(data) > max_bytes:
            raise MalformedError("too_large", f"{what} has {len(data)} bytes, at most {max_bytes} are read")
        self._data = data
        self._what = what
        self._at = 0

    def raw(self, length: int) -> bytes:
        """Return exactly that many bytes."""
        end = self._at + length
        if end > len(self._data):
            raise MalformedError("truncated", f"{self._what} ends after {len(self._data)} bytes")
        value = self._data[self._at : end]
        self._at = end
        return value

    def u8(self) -> int:
        """Return one byte as a number."""
        return self.raw(1)[0]

    def u32(self) -> int:
        """Return four bytes as a number."""
        return int.from_bytes(self.raw(4), "big")

    def u64(self) -> int:
        """Return eight bytes as a number."""
        return int.from_bytes(self.raw(8), "big")

    def variable(self, max_bytes: int) -> bytes:
        """Return a field that carries its length."""
        length = self.u32()
        if length > max_bytes:
            raise MalformedError("field_too_large", f"a field of {self._what} announces {length} bytes")
        return self.raw(length)

    def text(self, max_bytes: int) -> str:
        """Return a UTF-8 field."""
        try:
            return self.variable(max_bytes).decode()
        except UnicodeDecodeError as exc:
            raise MalformedError("not_utf8", f"a text of {self._what} is not UTF-8") from exc

    def flag(self) -> bool:
        """Return a byte that is 0 or 1; anything else would make two encodings of one message."""
        value = self.u8()
        if value > 1:
            raise MalformedError("not_canonical", f"a flag of {self._what} is {value}")
        return value == 1

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.raw(len(self._data) - self._at)

    def end(self) -> None:
        """Check that nothing is left over."""
        if self._at != len(self._data):
            raise MalformedError("trailing_bytes", f"{self._what} has bytes after its end")
