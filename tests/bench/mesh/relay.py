"""The relay's part of `make bench-mesh`: ours against a bare grpc.aio echo and a raw nats-server, in one run.

Subjects run on one core, the load on another. All use mTLS. The relay does all that it does in production:
policy, quotas, duplicates, a store that is on disk before a receipt, receipts and acknowledgements. The
echo does nothing but send frames back, and NATS (core) nothing but pass messages on in memory; neither
acknowledges nor stores. CPU is that of the subject's process alone. `relay_vs_echo` is envelopes for each
CPU second, ours over the echo's, at sixteen envelopes a frame; `relay_vs_echo_64` the same at sixty-four,
where a frame costs next to nothing.
"""

import asyncio
import json
import logging
import os
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from kars.mesh.v1 import policy_pb2
from kars_relay_testkit import MeshWorld, RelayProcess, TestPeer, channel
from kars_relay_testkit.nats import server_binary
from kars_relay_testkit.world import everybody
from rich.table import Table

from tests.bench.mesh import load
from tests.bench.mesh.load import Tally
from tests.bench.mesh.parts import Part, Target
from tests.bench.router.procfs import cpu_seconds

ROOT = Path(__file__).resolve().parents[3]
PAIRS = 25
PAYLOAD_BYTES = 1024
SECONDS = 3.0
IDLE_CONNECTIONS = 5000
TARGETS = (
    Target(figure="relay_vs_echo", text="relay against a bare echo, envelopes a CPU second", bound=0.5),
    Target(figure="relay_cpu_us", text="CPU us an envelope, 16 a frame (aim)", bound=12.0, at_most=True),
)
SHAPES = {"16": (16, 256), "64": (64, 256)}
"""Envelopes a frame, and how many a client has in flight."""
PACED_PER_S = 300


@dataclass
class Bench:
    """Everything that one run measured."""

    tallies: dict[str, list[Tally]] = field(default_factory=dict)
    idle_kib: float = 0.0
    idle_connections: int = 0

    def add(self, name: str, tally: Tally) -> None:
        self.tallies.setdefault(name, []).append(tally)

    def median(self, name: str, what: Callable[[Tally], float]) -> float:
        return statistics.median(what(tally) for tally in self.tallies[name])

    def figures(self) -> dict[str, float]:
        """Return the flat figures of the JSON file."""
        out: dict[str, float] = {}
        for name in self.tallies:
            key = name.replace(" ", "_")
            if name.endswith("paced"):
                out[f"{key}_p50_us"] = self.median(name, lambda tally: tally.percentile_us(50))
                out[f"{key}_p99_us"] = self.median(name, lambda tally: tally.percentile_us(99))
            else:
                out[f"{key}_envelopes_per_s"] = self.median(name, lambda tally: tally.rate)
                out[f"{key}_cpu_us"] = self.median(name, lambda tally: tally.cpu_us)
        out["relay_cpu_us"] = out["relay_16_cpu_us"]
        out["relay_vs_echo"] = self._paired("echo 16", "relay 16")
        out["relay_vs_echo_64"] = self._paired("echo 64", "relay 64")
        out["relay_vs_nats"] = self._paired("nats", "relay 64")
        out["idle_kib"] = self.idle_kib
        out["idle_connections"] = float(self.idle_connections)
        return {name: round(value, 3) for name, value in out.items()}

    def _paired(self, other: str, ours: str) -> float:
        # Windows of one round are compared with one another, so that a slow minute hits both.
        pairs = zip(self.tallies[other], self.tallies[ours], strict=True)
        return statistics.median(theirs.cpu_us / our.cpu_us for theirs, our in pairs)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let children that are started within run on one core."""
    before = os.sched_getaffinity(0)
    if core in before and len(before) > 1:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(rounds: int, *, seconds: float = SECONDS, idle: int = IDLE_CONNECTIONS) -> Part:
    """Run everything; `idle` 0 leaves the idle connections out."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(_measure(rounds, seconds, idle)).figures()
    return Part(figures=dict(figures), targets=TARGETS, tables=[_table(figures)])


async def _measure(rounds: int, seconds: float, idle: int) -> Bench:
    _raise_file_limit()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # uvloop warns at the end of every TLS connection
    bench = Bench()
    (ROOT / "build" / "bench").mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=ROOT / "build" / "bench") as scratch:
        directory = Path(scratch)
        world = MeshWorld()
        peers = [world.peer(f"peer-{number}") for number in range(2 * PAIRS)]
        unlimited = policy_pb2.MeshQuota(
            send_rate=10**6, send_burst=10**6, send_bytes_rate=10**10, send_bytes_burst=10**10
        )
        world.write_relay(directory, world.rules(everybody(world), quota=unlimited))
        with on_core(cores[0]):
            relay = RelayProcess(directory=directory).start()
            echo = _Child.echo(directory)
            nats_server = _Child.nats(directory)
        os.sched_setaffinity(0, {cores[-1]})
        try:
            for _ in range(rounds):
                for name, (load.BATCH, load.IN_FLIGHT) in SHAPES.items():
                    bench.add(f"relay {name}", await _relay(relay, peers, seconds))
                    bench.add(f"echo {name}", await _echo(echo, peers, seconds))
                bench.add("nats", await _nats(nats_server, directory, seconds))
                bench.add("relay paced", await _paced(relay, peers, seconds))
            if idle:
                relay.kill()
                with on_core(cores[0]):
                    relay.start()
                bench.idle_connections = idle
                bench.idle_kib = await _idle(relay, world, idle)
        finally:
            for child in (relay, echo, nats_server):
                child.kill()
            os.sched_setaffinity(0, set(cores))
    return bench


async def _relay(relay: RelayProcess, peers: list[TestPeer], seconds: float) -> Tally:
    port, pid = relay.ports["main"], relay.pid
    streams = [await load.attach_raw(peer, port) for peer in peers]
    clients = [
        load.RelayClient(stream, peers[number ^ 1], PAYLOAD_BYTES) for number, stream in enumerate(streams)
    ]
    tally = await load.closed_loop(clients, lambda: cpu_seconds([pid]), warmup_s=1.0, seconds=seconds)
    for stream in streams:
        await stream.close()
    return tally


async def _echo(echo: "_Child", peers: list[TestPeer], seconds: float) -> Tally:
    channels = [channel(peer.svid, echo.port) for peer in peers]
    clients = [
        load.EchoClient(load.raw_attach(opened), peer, PAYLOAD_BYTES)
        for opened, peer in zip(channels, peers, strict=True)
    ]
    tally = await load.closed_loop(clients, lambda: cpu_seconds([echo.pid]), warmup_s=1.0, seconds=seconds)
    for opened in channels:
        await opened.close(None)
    return tally


async def _nats(server: "_Child", directory: Path, seconds: float) -> Tally:
    identity = directory / "identity"
    context = ssl.create_default_context(cafile=str(identity / "ca.crt"))
    context.load_cert_chain(str(identity / "tls.crt"), str(identity / "tls.key"))
    clients = [
        await load.NatsClient.connect(server.port, context, number, PAYLOAD_BYTES)
        for number in range(2 * PAIRS)
    ]
    tally = await load.closed_loop(clients, lambda: cpu_seconds([server.pid]), warmup_s=1.0, seconds=seconds)
    for client in clients:
        await client.close()
    return tally


async def _paced(relay: RelayProcess, peers: list[TestPeer], seconds: float) -> Tally:
    port = relay.ports["main"]
    streams = [await load.attach_raw(peer, port) for peer in peers]
    tally = await load.paced(streams, peers, PAYLOAD_BYTES, per_s=PACED_PER_S, seconds=seconds)
    for stream in streams:
        await stream.close()
    return tally


async def _idle(relay: RelayProcess, world: MeshWorld, count: int) -> float:
    """Return the KiB of private memory that one attached, silent peer costs the relay."""
    streams: list[Any] = []
    warm = [await load.attach_raw(world.peer(f"warm-{number}"), relay.ports["main"]) for number in range(50)]
    before = _private_kib(relay.pid)
    for start in range(0, count, 50):
        batch = [world.peer(f"idle-{number}") for number in range(start, min(start + 50, count))]
        streams += await asyncio.gather(*[load.attach_raw(peer, relay.ports["main"]) for peer in batch])
    await asyncio.sleep(2.0)  # let buffers of the handshakes be returned
    grown = _private_kib(relay.pid) - before
    for stream in (*warm, *streams):
        stream.call.cancel()
    await asyncio.gather(*[stream.channel.close(None) for stream in (*warm, *streams)])
    return grown / count


def _private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


class _Child:
    """Another subject: a process that says its port."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self._process = process
        self.pid = process.pid
        self.port = port

    @classmethod
    def echo(cls, directory: Path) -> "_Child":
        ready = directory / "echo.port"
        command = [sys.executable, str(Path(__file__).with_name("echo.py")), str(directory / "identity")]
        process = subprocess.Popen([*command, str(ready)])
        _wait(ready.exists, process)
        return cls(process, int(ready.read_text()))

    @classmethod
    def nats(cls, directory: Path) -> "_Child":
        identity = directory / "identity"
        config = directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:-1"\nports_file_dir: "{directory}"\n'
            f'tls {{ cert_file: "{identity}/tls.crt", key_file: "{identity}/tls.key",'
            f' ca_file: "{identity}/ca.crt", verify: true }}\n'
        )
        with (directory / "nats.log").open("wb") as log:
            process = subprocess.Popen([server_binary(), "-c", str(config)], stdout=log, stderr=log)
        _wait(lambda: any(directory.glob("*.ports")), process)
        ports = json.loads(next(directory.glob("*.ports")).read_text())
        return cls(process, int(ports["nats"][0].rpartition(":")[2]))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _wait(ready: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start")
        time.sleep(0.05)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _table(figures: dict[str, float]) -> Table:
    table = Table("subject", "envelopes/s", "CPU us", title="one core, mTLS, 1 KiB, 25 pairs")
    for name, label in (
        ("relay_16", "relay, 16 a frame"), ("echo_16", "bare echo, 16 a frame"),
        ("relay_64", "relay, 64 a frame"), ("echo_64", "bare echo, 64 a frame"),
        ("nats", "nats-server, core"),
    ):  # fmt: skip
        rate, cpu = figures[f"{name}_envelopes_per_s"], figures[f"{name}_cpu_us"]
        table.add_row(label, f"{rate:,.0f}", f"{cpu:.1f}")
    p50, p99 = figures["relay_paced_p50_us"], figures["relay_paced_p99_us"]
    table.add_row(f"relay, {PACED_PER_S}/s paced", f"p50 {p50:,.0f} us", f"p99 {p99:,.0f} us")
    table.add_row(f"{figures['idle_connections']:,.0f} idle", f"{figures['idle_kib']:.0f} KiB each", "")
    table.add_row("relay over echo, 64 a frame", f"{figures['relay_vs_echo_64']:.2f}", "")
    table.add_row("relay over nats-server", f"{figures['relay_vs_nats']:.2f}", "")
    return table
