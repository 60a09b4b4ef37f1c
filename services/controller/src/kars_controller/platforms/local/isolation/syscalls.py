"""Raw system calls through libc, by name, for the architectures whose numbers we have.

Refuses to know what any call is for. Every failure is an `OSError` that names the call.
"""

import ctypes
import functools
import json
import os
import platform
from pathlib import Path

from kars_controller.platforms.local.isolation.errors import IsolationError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@functools.cache
def tables() -> dict[str, dict[str, int]]:
    """Return the system-call numbers of each known architecture."""
    text = Path(__file__).with_name("syscalls.json").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, int]] = json.loads(text)
    return loaded


@functools.cache
def table() -> dict[str, int]:
    """Return this machine's system-call numbers.

    Raises:
        IsolationError: `architecture_unsupported`.
    """
    machine = platform.machine()
    if machine not in tables():
        raise IsolationError("architecture_unsupported", f"no system-call table for {machine}")
    return tables()[machine]


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """Make a system call; structures and buffers are passed by address.

    Raises:
        OSError: the kernel refused; the message names the call.
    """
    converted = [_convert(argument) for argument in arguments]
    ctypes.set_errno(0)
    result: int = _libc.syscall(ctypes.c_long(table()[name]), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _convert(argument: object) -> object:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    return ctypes.byref(argument)  # type: ignore[arg-type]  # an Array or Structure, by the signature of call


def prctl(option: int, *arguments: int) -> int:
    """Make a prctl call; missing arguments are zero, as several options demand.

    Raises:
        OSError: the kernel refused.
    """
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return call("prctl", option, *padded)
