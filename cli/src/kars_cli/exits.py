"""Exit codes, the same for every command; scripts rely on them."""

from enum import IntEnum


class Exit(IntEnum):
    """What the exit code says."""

    OK = 0
    REFUSED = 1
    """The request was refused or failed."""
    USAGE = 2
    """The command line or a file is wrong, or a verification failed."""
    UNREACHABLE = 3
    """The controller or router did not answer."""


HELP = "Exit codes: 0 done; 1 refused or failed; 2 wrong usage, or a verification failed; 3 not reachable."
