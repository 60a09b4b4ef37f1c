"""The control socket's wire format, for both ends: bounded JSON lines, with descriptors beside them.

The socket is addressed through /proc/self/fd of its directory, because a socket address holds only 107
bytes.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_LINE = 1 << 20


class ChannelError(Exception):
    """The other end sent something that is no message of ours."""


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield an address, short enough, for a socket path; valid inside the block."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def encode(message: dict[str, Any]) -> bytes:
    """Return one line.

    Raises:
        ChannelError: it is longer than MAX_LINE.
    """
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ChannelError(f"message of {len(line)} bytes, at most {MAX_LINE}")
    return line


class Lines:
    """Collects bytes into messages."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the messages that are complete with data.

        Raises:
            ChannelError: too long, or no JSON object.
        """
        self._buffer += data
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            if len(line) > MAX_LINE:
                raise ChannelError("line too long")
            yield _object(line)
        if len(self._buffer) > MAX_LINE:
            raise ChannelError("line too long")


def _object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChannelError("not JSON") from error
    if not isinstance(message, dict):
        raise ChannelError("not an object")
    return message


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end, by the kernel's word."""
    return _credentials(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """Return the process at the other end, by the kernel's word."""
    return _credentials(connection)[0]


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid
