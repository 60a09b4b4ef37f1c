"""Identifiers of calls and traces: unguessable, and cheap enough for every request."""

import os
import time

_BLOCK_BYTES = 4096


class _Entropy:
    """The kernel's randomness, fetched in blocks: a fetch is a system call, and a request needs two ids."""

    __slots__ = ("_block", "_used")

    def __init__(self) -> None:
        self._block = b""
        self._used = 0

    def hex(self, count: int) -> str:
        """Return `count` random bytes as hexadecimal text; none is ever returned twice."""
        end = self._used + count
        if end > len(self._block):
            self._block, self._used, end = os.urandom(_BLOCK_BYTES), 0, count
        taken = self._block[self._used : end]
        self._used = end
        return taken.hex()

    def forget(self) -> None:
        """Drop what is left: a forked child must not go on where its parent does."""
        self._block = b""


_entropy = _Entropy()
os.register_at_fork(after_in_child=_entropy.forget)


def new_call_id() -> str:
    """Return 26 hexadecimal characters that sort by time."""
    return f"{time.time_ns() // 1_000_000:012x}{_entropy.hex(7)}"


def new_trace_id() -> str:
    """Return 16 hexadecimal characters."""
    return _entropy.hex(8)
