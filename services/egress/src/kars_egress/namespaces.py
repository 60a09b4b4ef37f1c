"""Does one thing inside a network namespace: sockets that are made there stay there.

Only a thread of its own enters; the process and its loop remain outside.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

_Result = TypeVar("_Result")
CLONE_NEWNET = 0x40000000


def enter(namespace: Path | str) -> None:
    """Move the calling thread into a namespace.

    Raises:
        OSError: there is none, or this process may not.
    """
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace))
    finally:
        os.close(descriptor)


def inside(namespace: Path | str, function: Callable[[], _Result]) -> _Result:
    """Call something in a thread that is inside; blocks until it returns.

    Raises:
        OSError: as `enter`; and whatever the function raises.
    """
    outcome: Future[_Result] = Future()

    def run() -> None:
        try:
            enter(namespace)
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - handed on to the caller
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="inside a namespace")
    thread.start()
    thread.join()
    return outcome.result()
