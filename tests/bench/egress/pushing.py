"""From a change of policy to its effect, with 1 to 10,000 sandboxes on one gateway, and what a sandbox costs.

The change is made as the control service makes it, kept on disk included; the effect is seen by a probe that
asks over one kept connection until the answer is another.
"""

import functools
import resource
import socket
import ssl
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from kars_common.testing import MemoryAuthority
from kars_egress.policy.entries import Entry
from kars_egress.policy.sandboxes import Approval, SandboxId
from kars_egress.xds import types
from kars_egress_testkit.running import Scene, wait
from kars_egress_testkit.service import read_answer
from kars_egress_testkit.world import PUBLIC_2

DOOR = (PUBLIC_2, 3443)
_DOMAINS = 20
_PROBED = SandboxId("bench", "s0")


@dataclass(frozen=True, slots=True)
class Pushed:
    """What one size showed."""

    sandboxes: int
    p50_ms: float
    p95_ms: float
    bytes_per_update: int
    cpu_ms_per_update: float
    envoy_mib: float
    load_s: float


def measure(scene: Scene, sandboxes: int, existing: int, updates: int) -> Pushed:
    """Bring the gateway to so many sandboxes and toggle one of them."""
    started = time.monotonic()
    scene.call(lambda: _fill(scene, existing, sandboxes))
    wait(lambda: scene.call(lambda: _all_there(scene, sandboxes)), "Envoy has every sandbox", 120)
    load_s = time.monotonic() - started
    probe = _Probe(scene, scene.egress.authority)
    times, used = [], 0.0
    for number in range(updates):
        allow = number % 2 == 0
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.perf_counter()
        scene.call(functools.partial(_toggle, scene, allow=allow))
        after = resource.getrusage(resource.RUSAGE_SELF)
        used += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        while probe.status() != (200 if allow else 403):
            pass
        times.append((time.perf_counter() - begun) * 1000)
    probe.close()
    found = scene.egress.app.snapshot.get(types.ROUTES, f"sandbox/{_PROBED}")
    return Pushed(
        sandboxes=sandboxes,
        p50_ms=statistics.median(times),
        p95_ms=sorted(times)[int(len(times) * 0.95)],
        bytes_per_update=len(found.data) if found is not None else 0,
        cpu_ms_per_update=used / updates * 1000,
        envoy_mib=resident_mib(scene.egress.app.envoy.pid or 0),
        load_s=load_s,
    )


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no memory of {pid}")


async def _fill(scene: Scene, existing: int, sandboxes: int) -> None:
    enforcement = scene.egress.app.enforcement
    for number in range(existing, sandboxes):
        entries = [Entry.build(f"d{index}.s{number}.bench.test") for index in range(_DOMAINS - 1)]
        entries.append(Entry.build(f"own.s{number}.bench.test", scheme="http"))
        enforcement.apply(SandboxId("bench", f"s{number}"), entries, "")


async def _all_there(scene: Scene, sandboxes: int) -> bool:
    serving = list(scene.egress.app.subscriptions.serving(None))
    names = [f"sandbox/{SandboxId('bench', f's{number}')}" for number in (0, sandboxes // 2, sandboxes - 1)]
    return bool(serving) and all(serving[0].acknowledged(types.ROUTES, name) for name in names)


async def _toggle(scene: Scene, *, allow: bool) -> None:
    enforcement = scene.egress.app.enforcement
    if not allow:
        enforcement.revoke(_PROBED, "toggle")
        return
    entries = (Entry.build("api.allowed.test", scheme="http"),)
    enforcement.grant(
        _PROBED,
        Approval(
            id="toggle", entries=entries, expires_s=time.time() + 600, reason="bench", granted_by="bench"
        ),
    )


class _Probe:
    """One kept connection of one sandbox to the gateway."""

    def __init__(self, scene: Scene, authority: MemoryAuthority) -> None:
        svid = authority.sandbox(_PROBED.namespace, _PROBED.name)
        file = scene.directory / "probe.pem"
        file.write_bytes(svid.private_key_pem + svid.certificate_chain_pem)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(file)
        plain = scene.world.run(lambda: socket.create_connection(DOOR, timeout=10))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = context.wrap_socket(plain)

    def status(self) -> int:
        """Ask once."""
        self._connection.sendall(b"GET http://api.allowed.test/ HTTP/1.1\r\nhost: api.allowed.test\r\n\r\n")
        return read_answer(self._connection).status

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
