"""The load generator: a closed loop of N keep-alive connections, measured from the first byte sent.

Run as `python -m tests.bench.router.load ...`; prints one JSON object. Raw
protocols on uvloop and httptools, so that it costs little beside the subject.
An answer that is not 200, or a stream that does not end as it should, is an
error and is counted as nothing else.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import sys
from time import perf_counter
from typing import cast

import httptools
import uvloop

from tests.bench.router import procfs, wire

_WARM_UP_SHARE = 0.15
_GRACE_S = 20.0
_FEWEST_ANSWERS = 3
_LONGEST_S = 20.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one window of load saw. Times in milliseconds; CPU as shares of one core."""

    per_second: float
    p50_ms: float
    p99_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    samples: int
    errors: int
    first_error: str
    subject_cpu: float
    load_cpu: float
    foreign_cpu: float


class Tally:
    """What all connections of one window record."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.first_tokens: list[float] = []
        self.errors = 0
        self.first_error = ""
        self.open = False
        self.stopping = False

    def error(self, text: str) -> None:
        """Count an error and keep the first one's text."""
        self.errors += 1
        self.first_error = self.first_error or text[:300]


class Connection(asyncio.Protocol):
    """One caller: asks, waits for the whole answer, asks again."""

    def __init__(self, tally: Tally, request: bytes, *, stream: bool) -> None:
        self._tally = tally
        self._request = request
        self._stream = stream
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body: list[bytes] = []
        self._sent = 0.0
        self._first = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that closes by itself is an error: keep-alive is part of the work."""
        self._transport = None
        if not self.done.done():
            self._tally.error(f"connection closed: {exc!r} after {b''.join(self._body)[:200]!r}")
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Note when the first token arrives (httptools callback)."""
        self._body.append(body)
        if self._stream and not self._first and wire.CONTENT.search(b"".join(self._body)):
            self._first = perf_counter()

    def on_message_complete(self) -> None:
        """Record the answer and ask again (httptools callback)."""
        now = perf_counter()
        status = self._parser.get_status_code()
        body = b"".join(self._body)
        tally = self._tally
        if status != 200:
            tally.error(f"status {status}: {body[:250].decode(errors='replace')}")
        elif self._stream and not (self._first and body.rstrip().endswith(b"data: [DONE]")):
            tally.error(f"stream did not end well: {body[-200:].decode(errors='replace')}")
        elif tally.open:
            tally.latencies.append(now - self._sent)
            if self._stream:
                tally.first_tokens.append(self._first - self._sent)
        if tally.stopping or tally.errors > 100:
            self._finish()
        else:
            self._parser = httptools.HttpResponseParser(self)
            self._ask()

    def _ask(self) -> None:
        if self._transport is None:
            return
        self._body = []
        self._first = 0.0
        self._sent = perf_counter()
        self._transport.write(self._request)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if self._transport is not None:
            self._transport.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One window of load."""

    host: str
    port: int
    connections: int
    seconds: float
    stream: bool
    paced: bool
    subject_pid: int
    upstream_pid: int
    cores: tuple[int, ...]


async def run(job: Job) -> Measurement:
    """Put the load on for a warm-up and the window, and tell what was seen.

    Raises:
        OSError: the subject does not accept connections.
        TimeoutError: answers did not come within 20 seconds after the window.
    """
    tally = Tally()
    loop = asyncio.get_running_loop()
    request = wire.request(f"{job.host}:{job.port}", stream=job.stream, paced=job.paced)
    callers = [
        (
            await loop.create_connection(
                lambda: Connection(tally, request, stream=job.stream), job.host, job.port
            )
        )[1]
        for _ in range(job.connections)
    ]
    await asyncio.sleep(job.seconds * _WARM_UP_SHARE)
    subject = procfs.tree(job.subject_pid) if job.subject_pid else []
    own = [os.getpid(), job.upstream_pid]
    before = (procfs.cpu_seconds(subject), procfs.cpu_seconds(own), procfs.machine_busy_seconds(job.cores))
    tally.open = True
    begun = perf_counter()
    await asyncio.sleep(job.seconds)
    # A slow subject on a busy machine gets the time that a median needs.
    while len(tally.latencies) < _FEWEST_ANSWERS and not tally.errors and perf_counter() - begun < _LONGEST_S:
        await asyncio.sleep(job.seconds)
    tally.open = False
    tally.stopping = True
    elapsed = perf_counter() - begun
    after = (procfs.cpu_seconds(subject), procfs.cpu_seconds(own), procfs.machine_busy_seconds(job.cores))
    # The answers that the window cut off are awaited, so that nothing runs on into the next one.
    async with asyncio.timeout(_GRACE_S):
        await asyncio.gather(*(caller.done for caller in callers))
    subject_cpu, load_cpu, busy = ((b - a) / elapsed for a, b in zip(before, after, strict=True))
    return Measurement(
        per_second=len(tally.latencies) / elapsed,
        p50_ms=percentile_ms(tally.latencies, 0.50),
        p99_ms=percentile_ms(tally.latencies, 0.99),
        ttft_p50_ms=percentile_ms(tally.first_tokens, 0.50),
        ttft_p99_ms=percentile_ms(tally.first_tokens, 0.99),
        samples=len(tally.latencies),
        errors=tally.errors,
        first_error=tally.first_error,
        subject_cpu=subject_cpu,
        load_cpu=load_cpu,
        foreign_cpu=max(0.0, busy - subject_cpu - load_cpu),
    )


def percentile_ms(samples: list[float], share: float) -> float:
    """Return a percentile by nearest rank, in milliseconds; 0 when there are no samples."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


def main() -> None:
    """Read one job as JSON from the argument, run it on its core, print the measurement."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--core", type=int, required=True)
    arguments.add_argument("job", help="fields of Job as JSON; --hold of the run tells port and pids")
    given = arguments.parse_args()
    os.sched_setaffinity(0, {given.core})
    gc.disable()
    measured = uvloop.run(run(Job(**json.loads(given.job))))
    json.dump(dataclasses.asdict(measured), sys.stdout)


if __name__ == "__main__":
    main()
