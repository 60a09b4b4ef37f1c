"""Putting a compiled filter in force for this process and all its children. One way."""

import ctypes

from kars_controller.platforms.local.isolation import syscalls
from kars_controller.platforms.local.isolation.errors import IsolationError

_SET_MODE_FILTER = 1
_INSTRUCTION_BYTES = 8


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(program: bytes) -> None:
    """Install a filter; needs no_new_privs or CAP_SYS_ADMIN.

    Raises:
        IsolationError: `seccomp_failed`; the process must not go on.
    """
    code = ctypes.create_string_buffer(program, len(program))
    description = _Program(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(code))
    try:
        syscalls.call("seccomp", _SET_MODE_FILTER, 0, description)
    except OSError as error:
        raise IsolationError("seccomp_failed", f"seccomp filter refused: {error}") from error
