"""A single-threaded event loop: readable descriptors, ended children, timers. Nothing is polled.

Single-threaded because the supervisor forks: a fork of a threaded process may inherit a lock that nobody
will release.
"""

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable

Callback = Callable[[], None]


class Timer:
    """One future call; cancel it to forget it."""

    def __init__(self, callback: Callback) -> None:
        self._callback: Callback | None = callback

    def cancel(self) -> None:
        """Never call back. Idempotent."""
        self._callback = None

    def fire(self) -> None:
        """Call back, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Loop:
    """Runs callbacks until stopped."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False

    def on_readable(self, descriptor: int, callback: Callback) -> None:
        """Call back whenever a descriptor can be read, until forgotten."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor; call before closing it. Idempotent."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Reap a child when it ends and call back with its exit code (negative: the signal)."""
        descriptor = os.pidfd_open(pid)

        def ended() -> None:
            self.forget(descriptor)
            os.close(descriptor)
            _, status = os.waitpid(pid, 0)
            callback(os.waitstatus_to_exitcode(status))

        self.on_readable(descriptor, ended)

    def on_signal(self, number: signal.Signals, callback: Callback) -> None:
        """Call back, from the loop, when the process gets a signal."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.settimeout(0)
        signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: None)

        def woken() -> None:
            ours.recv(4096)
            callback()

        self.on_readable(ours.fileno(), woken)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Call back once after a delay."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))
        return timer

    def stop(self) -> None:
        """Let `run` return after the present callback."""
        self._stopped = True

    def run(self) -> None:
        """Serve until stopped."""
        while not self._stopped:
            for key, _ in self._selector.select(self._pause()):
                # An earlier callback may have forgotten it, and its number may be somebody else's by now.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self._fire_due()

    def _pause(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _fire_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2].fire()
