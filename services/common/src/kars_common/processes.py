"""What a service asks of its own process at start."""

import resource
import sys


def raise_open_files() -> int:
    """Raise this process's limit of open files to what it may have; return it.

    Shells hand down 1024, which is for programs that use `select`. A server that runs out of descriptors
    cannot accept, cannot connect, and cannot turn to its next audit segment.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
