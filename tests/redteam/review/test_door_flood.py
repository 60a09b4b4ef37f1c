"""An agent that wants the router's memory: many connections, many large requests, none of them complete."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from kars_common import processes
from kars_router.api.protocol import MAX_CONNECTIONS
from kars_router_testkit import FakeProvider, RouterProcess

PIECE = b"x" * (1 << 20)
DEADLINE_S = 20.0
HEAD = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 16000000\r\n\r\n"


def resident_mib(router: RouterProcess) -> int:
    """The router's resident memory."""
    assert router.process is not None
    status = Path(f"/proc/{router.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


@contextlib.contextmanager
def connections(router: RouterProcess, count: int) -> Iterator[list[socket.socket]]:
    """Open connections, closed afterwards."""
    processes.raise_open_files()  # ours: a shell hands down fewer than the flood needs
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", router.port), timeout=DEADLINE_S))
            for _ in range(count)
        ]


def test_many_large_requests_at_once_are_refused_before_they_fill_the_memory(router: RouterProcess) -> None:
    assert router.chat().status == 200
    before = resident_mib(router)
    refused = 0
    with connections(router, 24) as flood:
        for number, one in enumerate(flood):
            one.sendall(HEAD % (b"/v1/chat/completions" if number % 2 else b"/agt/evaluate"))
            with contextlib.suppress(OSError):
                for _ in range(15):
                    one.sendall(PIECE)
        assert resident_mib(router) - before < 200
        for one in flood:
            one.settimeout(0.05)
            with contextlib.suppress(OSError):
                refused += b"too_many_bytes_in_flight" in one.recv(65536)
    assert refused > 0
    end = time.monotonic() + DEADLINE_S
    while router.chat(messages=[{"role": "user", "content": "x" * 10_000_000}]).status != 200:
        assert time.monotonic() < end, "the room was not given back"


def test_more_connections_than_a_door_keeps_are_closed_and_the_others_are_served(
    router: RouterProcess, provider: FakeProvider
) -> None:
    with connections(router, MAX_CONNECTIONS + 8) as flood:
        flood[-1].settimeout(DEADLINE_S)
        assert flood[-1].recv(1) == b""
        flood[0].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert flood[0].recv(65536).startswith(b"HTTP/1.1 200")
    assert router.chat().status == 200
    assert len(provider.received) == 1
