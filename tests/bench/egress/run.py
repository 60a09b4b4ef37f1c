"""Entry of `make bench-egress`: traffic against bare Envoy in interleaved rounds, pushes, memory, blocklist.

Exit code 0 when everything was measured, whatever the figures are. Writes `build/bench/egress.json`.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from kars_egress.blocklist.fetching import HttpFetcher
from kars_egress.policy.entries import Entry
from kars_egress.xds import topology
from kars_egress_testkit.running import Scene, scene, wait
from kars_egress_testkit.service import Agent

from tests.bench.egress import pushing, traffic

REPO = Path(__file__).resolve().parents[3]
DOMAINS = 400_000
PROMISES: dict[str, tuple[str, float]] = {
    "static_vs_envoy": (">=", 0.85),
    "full_vs_envoy": (">=", 0.45),
    "connect_static_vs_envoy": (">=", 0.85),
    "connect_full_vs_envoy": (">=", 0.45),
    "push_p95_ms_10k": ("<=", 100.0),
    "envoy_kb_per_sandbox": ("<=", 40.0),
}


def main() -> int:
    """Run the benchmark; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--rounds", type=int, default=9, help="rounds of traffic; each visits every subject"
    )
    arguments.add_argument("--seconds", type=float, default=2.0, help="length of one window")
    arguments.add_argument("--sandboxes", type=int, default=10_000, help="the largest number of sandboxes")
    given = arguments.parse_args()
    if os.geteuid() != 0:
        print("bench-egress needs uid 0: it runs in network namespaces with addresses of their own")
        return 1
    if shutil.which("wrk") is None:
        print("bench-egress needs wrk (Debian package wrk), which sends the requests")
        return 1
    figures: dict[str, object] = {"load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="kars-bench-") as scratch:
        _traffic(Path(scratch), figures, given.rounds, given.seconds)
        _pushes(Path(scratch), figures, given.sandboxes)
    _report(figures)
    return 0


def _traffic(scratch: Path, figures: dict[str, object], rounds: int, seconds: float) -> None:

    from tests.bench.egress import traffic

    entries = [Entry.build(traffic.HOST), Entry.build(traffic.HOST, scheme="http")]
    entries += [Entry.build(f"d{number}.bench.test") for number in range(17)]
    entries.append(Entry.build("*.wild.test", scheme="http"))
    with contextlib.ExitStack() as stack:
        static = stack.enter_context(_scene(scratch / "static", None))
        # Decisions alone: the log, and the audit that it feeds, are part of `full`.
        with mock.patch.object(topology, "request_logs", return_value=[]):
            static.allow(*entries)
        full = stack.enter_context(_scene(scratch / "full", _feed(scratch)))
        full.allow(*entries)
        for namespace in (static.world, full.world, static.agent.namespace, full.agent.namespace):
            traffic.tune(namespace)
        envoys = {"static": static.egress.app.envoy.pid or 0, "full": full.egress.app.envoy.pid or 0}
        _load_blocklist(full, scratch, figures)
        with (
            traffic.origin(scratch, static.world),
            traffic.bare(scratch, static.world, static.agent.namespace) as bare,
            traffic.origin(scratch, full.world),
        ):
            subjects = [
                traffic.Subject("bare", static.agent.namespace, traffic.BARE_PORT, bare),
                traffic.Subject("static", static.agent.namespace, 3128, envoys["static"]),
                traffic.Subject("full", full.agent.namespace, 3128, envoys["full"]),
            ]
            for subject in subjects:
                wait(functools.partial(_serves, subject), f"{subject.name} serves", 20)
            for kind, measure in (("keepalive", traffic.requests), ("connect", traffic.tunnels)):
                _rounds(figures, kind, measure, subjects, rounds, seconds)
    figures["static_vs_envoy"] = figures["keepalive_static_vs_envoy"]
    figures["full_vs_envoy"] = figures["keepalive_full_vs_envoy"]


def _load_blocklist(scene_: Scene, scratch: Path, figures: dict[str, object]) -> None:
    """Let the feed grow to its full size and wait until Envoy refuses what is on it."""
    wait(lambda: scene_.agent.http("first.wild.test").reason == "blocklist", "the small list is in force")
    app = scene_.egress.app
    before = pushing.resident_mib(app.envoy.pid or 0)
    (scratch / "listed.txt").write_bytes((scratch / "full.txt").read_bytes())
    started = time.monotonic()
    scene_.call(lambda: app.blocklist.refresh(HttpFetcher()))
    wait(lambda: scene_.agent.http("listed.wild.test").reason == "blocklist", "the blocklist is in force", 60)
    figures["blocklist_load_s"] = round(time.monotonic() - started, 2)
    figures["blocklist_mib"] = round(pushing.resident_mib(app.envoy.pid or 0) - before, 1)
    figures["blocklist_domains"] = len(app.blocklist)


def _rounds(
    figures: dict[str, object],
    kind: str,
    measure: Callable[[traffic.Subject, float], traffic.Window],
    subjects: list[traffic.Subject],
    rounds: int,
    seconds: float,
) -> None:
    windows: dict[str, list[traffic.Window]] = {}
    for number in range(rounds + 1):
        order = list(subjects)
        random.shuffle(order)
        for subject in order:
            window = measure(subject, seconds if number else 1.0)
            if number:  # the first warms up
                windows.setdefault(subject.name, []).append(window)
    for name, found in windows.items():
        for field in ("per_s", "p50_ms", "p99_ms", "per_cpu_s"):
            figures[f"{kind}_{name}_{field}"] = round(statistics.median(getattr(w, field) for w in found), 3)
    for name in ("static", "full"):
        pairs = list(zip(windows[name], windows["bare"], strict=True))
        figures[f"{kind}_{name}_vs_envoy"] = round(statistics.median(a.per_s / b.per_s for a, b in pairs), 3)
        figures[f"{kind}_{name}_vs_envoy_per_cpu"] = round(
            statistics.median(a.per_cpu_s / b.per_cpu_s for a, b in pairs), 3
        )
        for field in ("p50_ms", "p99_ms"):
            added = statistics.median(getattr(a, field) - getattr(b, field) for a, b in pairs)
            figures[f"{kind}_{name}_added_{field}"] = round(added, 3)


def _pushes(scratch: Path, figures: dict[str, object], most: int) -> None:
    door = f"{pushing.DOOR[0]}:{pushing.DOOR[1]}"
    sizes = sorted({size for size in (1, 100, 1000, most) if size <= most})
    with _scene(scratch / "push", None, gateway=door) as gateway:
        existing, found = 0, []
        for size in sizes:
            found.append(pushing.measure(gateway, size, existing, 60))
            existing = size
    for pushed in found:
        label = f"{pushed.sandboxes // 1000}k" if pushed.sandboxes >= 1000 else str(pushed.sandboxes)
        figures[f"push_p50_ms_{label}"] = round(pushed.p50_ms, 2)
        figures[f"push_p95_ms_{label}"] = round(pushed.p95_ms, 2)
        figures[f"push_bytes_{label}"] = pushed.bytes_per_update
        figures[f"push_cpu_ms_{label}"] = round(pushed.cpu_ms_per_update, 2)
        figures[f"push_envoy_mib_{label}"] = round(pushed.envoy_mib, 1)
        figures[f"push_load_s_{label}"] = round(pushed.load_s, 1)
    first, last = found[0], found[-1]
    if last.sandboxes > first.sandboxes:
        grown = (last.envoy_mib - first.envoy_mib) * 1024 / (last.sandboxes - first.sandboxes)
        figures["envoy_kb_per_sandbox"] = round(grown * 1.024, 1)


@contextlib.contextmanager
def _scene(directory: Path, feeds: Path | None, gateway: str | None = None) -> Iterator[Scene]:
    directory.mkdir()
    with scene(directory, feeds_file=feeds, gateway_address=gateway, origins=gateway is not None) as running:
        yield running


def _feed(scratch: Path) -> Path:
    numbers = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = {
        "".join(numbers.choices(letters, k=numbers.randint(6, 14))) + ".test" for _ in range(DOMAINS + 5000)
    }
    listed = scratch / "listed.txt"
    listed.write_text("first.wild.test\n")
    (scratch / "full.txt").write_text("\n".join(["listed.wild.test", *sorted(names)[: DOMAINS - 1]]) + "\n")
    feeds = scratch / "feeds.json"
    feeds.write_text(json.dumps({"feeds": [{"name": "bench", "url": str(listed)}]}))
    return feeds


def _serves(subject: traffic.Subject) -> bool:

    from tests.bench.egress import traffic

    assert isinstance(subject, traffic.Subject)
    request = f"GET http://{traffic.HOST}/ HTTP/1.1\r\nhost: {traffic.HOST}\r\n\r\n".encode()
    try:
        return Agent(subject.inside).exchange(request, port=subject.port).status == 200
    except OSError:
        return False


def _report(figures: dict[str, object]) -> None:
    figures["load_average_after"] = os.getloadavg()[0]
    output = REPO / "build" / "bench" / "egress.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    for name in sorted(figures):
        print(f"{name:44} {figures[name]}")
    print()
    for name, (sign, bound) in PROMISES.items():
        value = figures.get(name)
        if not isinstance(value, int | float):
            print(f"{name:28} not measured")
            continue
        met = value >= bound if sign == ">=" else value <= bound
        print(f"{name:28} {value:10} promised {sign} {bound:6}  {'met' if met else 'MISSED'}")
    if max(os.getloadavg()[0], float(str(figures["load_average_before"]))) > (os.cpu_count() or 1):
        print("\nother jobs ran meanwhile: the ratios of throughput say little, look at *_per_cpu")
    print(f"\nwritten: {output.relative_to(REPO)}")


if __name__ == "__main__":
    sys.exit(main())
