"""Starts a program inside a network namespace: `<namespace file> <program> [<argument> ...]`.

Envoy connects to the internet from where it was started; a door that it opens elsewhere does not change that.
"""

import ctypes
import os
import sys

_CLONE_NEWNET = 0x40000000


def main(arguments: list[str]) -> None:
    """Enter, then become the program."""
    namespace, *program = arguments
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), namespace)
    os.execv(program[0], program)  # noqa: S606 (the supervisor's own command line)


if __name__ == "__main__":
    main(sys.argv[1:])
