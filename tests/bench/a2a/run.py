"""`make bench-a2a`: what the gateway costs, beside the sample agent called directly in the same rounds.

Everything is on: mTLS inside, bearer tokens, durable tasks, the audit log on disk before an answer.
Promises that are missed are printed as missed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import uvloop
from kars.a2a.v1 import policy_pb2
from kars_a2a_gateway_testkit.outsiders import TokenIssuer, token_rule
from kars_a2a_gateway_testkit.policies import exposure
from kars_a2a_gateway_testkit.stand import Stand, generous

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO))

from tests.bench.a2a.load import Samples, Target, closed_loop, hold_streams  # noqa: E402  # after the path

OUTPUT = REPO / "build" / "bench" / "a2a.json"
LOADS = {
    "send": ("SendMessage", "echo hello", b"TASK_STATE_COMPLETED"),
    "message": ("SendMessage", "message hello", b"ROLE_AGENT"),
    "stream": ("SendStreamingMessage", "stream 20", b"TASK_STATE_COMPLETED"),
}
_BUSY_CONNECTIONS = 64
PROMISES = {"cpu_ms_per_request": 0.6, "open_streams": 2000}


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Bench:
    """One stand, and what was measured on it."""

    def __init__(self, stand: Stand, *, rounds: int, seconds: float) -> None:
        self.stand = stand
        self.rounds = rounds
        self.seconds = seconds
        self.figures: dict[str, Any] = {}
        issuer = TokenIssuer()
        stand.start(
            policy_pb2.GatewayPolicy(agents=[], issuers=[issuer.policy()]),
            MAX_STREAMS="8192",
            LOG_LEVEL="warning",
        )
        stand.controller.publish(
            policy_pb2.GatewayPolicy(
                agents=[exposure(stand.door, callers=[token_rule(issuer, "agent.call")], limits=generous())],
                issuers=[issuer.policy()],
            )
        )
        version = {"A2A-Version": "1.0"}
        self.direct = Target(f"http://127.0.0.1:{stand.inside_ports['agent']}/", version)
        self.headers = {**version, "Authorization": f"Bearer {issuer.token()}"}
        self.gateway = Target(stand.url, self.headers)

    async def loads(self) -> None:
        """Measure every load, the two subjects by turns."""
        for name in LOADS:
            await self._once(name, self.gateway, 1.0)
            await self._once(name, self.direct, 1.0)
            seen: dict[str, list[float]] = {"rps": [], "direct_rps": [], "p50": [], "p99": [], "cpu": []}
            added = []
            for _ in range(self.rounds):
                direct = await self._once(name, self.direct, self.seconds)
                before = cpu_s(self.stand.gateway_pid)
                through = await self._once(name, self.gateway, self.seconds)
                used = cpu_s(self.stand.gateway_pid) - before
                seen["cpu"].append(used * 1000 / len(through.latencies_s))
                seen["rps"].append(len(through.latencies_s) / self.seconds)
                seen["direct_rps"].append(len(direct.latencies_s) / self.seconds)
                seen["p50"].append(through.percentile_ms(0.5))
                seen["p99"].append(through.percentile_ms(0.99))
            for _ in range(self.rounds):  # alone, so that queues do not count as latency
                direct = await self._once(name, self.direct, self.seconds / 2, connections=1)
                through = await self._once(name, self.gateway, self.seconds / 2, connections=1)
                added.append(through.percentile_ms(0.5) - direct.percentile_ms(0.5))
            self.figures |= {f"{name}_{key}": round(statistics.median(v), 3) for key, v in seen.items()}
            self.figures[f"{name}_added_p50_ms"] = round(statistics.median(added), 3)

    async def busy(self) -> None:
        """Measure a gateway that is the limit, so that no wake-up serves one request alone."""
        await self._once("send", self.gateway, 2.0, connections=_BUSY_CONNECTIONS)
        costs, rates = [], []
        for _ in range(self.rounds):
            before = cpu_s(self.stand.gateway_pid)
            through = await self._once("send", self.gateway, self.seconds, connections=_BUSY_CONNECTIONS)
            count = len(through.latencies_s)
            costs.append((cpu_s(self.stand.gateway_pid) - before) * 1000 / count)
            rates.append(count / self.seconds)
        self.figures["cpu_ms_per_request"] = round(statistics.median(costs), 3)
        self.figures["busy_rps"] = round(statistics.median(rates), 1)

    async def streams(self, count: int) -> None:
        """Hold streams open on the one core that the gateway has."""
        before = rss_mib(self.stand.gateway_pid)
        writers = await hold_streams(self.gateway, count, "slow 120")
        pid = self.stand.gateway_pid
        used = cpu_s(pid)
        await asyncio.sleep(5)
        async with httpx.AsyncClient(timeout=10) as client:
            port = self.stand.ports["health"]
            metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        counted = [line for line in metrics.splitlines() if line.startswith("kars_a2a_open_streams ")]
        self.figures |= {
            "open_streams": int(float(counted[0].split()[1])),
            "open_streams_asked": count,
            "open_streams_rss_mib": round(rss_mib(pid) - before, 1),
            "open_streams_core_share": round((cpu_s(pid) - used) / 5, 3),
        }
        for writer in writers:
            writer.close()

    async def _once(self, name: str, target: Target, seconds: float, connections: int = 16) -> Samples:
        method, text, expect = LOADS[name]
        samples = await closed_loop(
            target, method=method, text=text, expect=expect, connections=connections, seconds=seconds
        )
        if samples.wrong or not samples.latencies_s:
            raise SystemExit(f"{name}: {samples.wrong} wrong answers; there are no figures with errors")
        return samples


def table(figures: dict[str, Any]) -> Iterable[str]:
    """Yield the lines of the result."""
    heads = ("load", "direct/s", "gateway/s", "p50 ms", "p99 ms", "added p50", "CPU ms")
    yield "{:<10}{:>10}{:>11}{:>9}{:>9}{:>11}{:>9}".format(*heads)
    for name in LOADS:
        values = [
            figures[f"{name}_{key}"] for key in ("direct_rps", "rps", "p50", "p99", "added_p50_ms", "cpu")
        ]
        yield "{:<10}{:>10.0f}{:>11.0f}{:>9.2f}{:>9.2f}{:>11.2f}{:>9.3f}".format(name, *values)
    yield (
        f"{figures['open_streams']} streams open, {figures['open_streams_rss_mib']} MiB, "
        f"{figures['open_streams_core_share'] * 100:.1f} % of a core while idle"
    )
    rate = figures["busy_rps"]
    yield f"busy, {_BUSY_CONNECTIONS} connections, an agent that costs nothing: {rate:.0f} sends a second"
    for key, wanted in PROMISES.items():
        got = figures[key]
        met = got <= wanted if key == "cpu_ms_per_request" else got >= wanted
        yield (
            f"{key}: {got} (promised {'at most' if key == 'cpu_ms_per_request' else 'at least'} {wanted}): "
            + ("met" if met else "MISSED")
        )


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=2000)
    arguments = parser.parse_args()
    state = REPO / "build" / "bench" / "a2a-state"
    state.mkdir(parents=True, exist_ok=True)  # on this checkout's disk: fsyncs are real
    os.environ["PYTHONPATH"] = str(REPO)  # the light door is a module of the tests
    figures: dict[str, Any] = {}
    for module in ("kars_a2a_gateway_testkit.inside", "tests.bench.a2a.light_door"):
        with tempfile.TemporaryDirectory(dir=state) as directory:
            stand = Stand(Path(directory), inside_module=module)
            try:
                bench = Bench(stand, rounds=arguments.rounds, seconds=arguments.seconds)
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    if module == "tests.bench.a2a.light_door":
                        runner.run(bench.busy())
                    else:
                        runner.run(bench.loads())
                        runner.run(bench.streams(arguments.streams))
            finally:
                stand.stop()
        figures |= bench.figures
    figures["added_p50_ms"] = figures["send_added_p50_ms"]
    print("\n".join(table(figures)))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
