"""The schedule: every subject measured in turn, again and again, so that a slow minute hits all alike.

Inside a round each load goes over all subjects before the next load does, so that what is compared
was measured within seconds. Comparisons pair the windows of one round.
"""

import dataclasses
import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence

from tests.bench.router import environments, isolation, load, processes
from tests.bench.router.subjects import Running


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of load."""

    name: str
    connections: int
    stream: bool
    paced: bool
    seconds: float


LOADS = (
    Load(name="buffered", connections=16, stream=False, paced=False, seconds=1.4),
    Load(name="streamed", connections=16, stream=True, paced=False, seconds=1.4),
    Load(name="one_buffered", connections=1, stream=False, paced=False, seconds=1.4),
    Load(name="one_paced", connections=1, stream=True, paced=True, seconds=1.4),
)

Results = dict[str, dict[str, list[load.Measurement]]]
"""Measurements by subject and by load, one each round."""


class MeasureError(Exception):
    """A window of load failed, or had errors in it."""


def warm_up(subjects: Mapping[str, Running], upstream_pid: int, cores: isolation.Cores) -> None:
    """Put a short load of every kind on every subject, and forget it.

    Raises:
        MeasureError: as for `measure`.
    """
    for name, running in subjects.items():
        for kind in LOADS:
            measure(name, running, dataclasses.replace(kind, seconds=0.5), upstream_pid, cores)


def run(
    subjects: Mapping[str, Running],
    *,
    count: int,
    upstream_pid: int,
    cores: isolation.Cores,
    progress: Callable[[str], None],
) -> Results:
    """Measure all subjects `count` times.

    Raises:
        MeasureError: as for `measure`.
    """
    results: Results = {name: {kind.name: [] for kind in LOADS} for name in subjects}
    for number in range(1, count + 1):
        for kind in LOADS:
            for name, running in subjects.items():
                results[name][kind.name].append(measure(name, running, kind, upstream_pid, cores))
        for name, by_load in results.items():
            last = {kind: windows[-1] for kind, windows in by_load.items()}
            progress(
                f"round {number}/{count}  {name:<8} {last['buffered'].per_second:8.0f} req/s  "
                f"{last['streamed'].per_second:7.0f} streams/s  p50 {last['one_buffered'].p50_ms:.3f} ms  "
                f"ttft {last['one_paced'].ttft_p50_ms:.3f} ms"
            )
    return results


def measure(
    name: str, running: Running, kind: Load, upstream_pid: int, cores: isolation.Cores
) -> load.Measurement:
    """Put one window of load on a subject, from a process of its own on the load's core.

    Raises:
        MeasureError: the load generator failed, or an answer was wrong.
    """
    job = load.Job(
        host="127.0.0.1",
        port=running.port,
        connections=kind.connections,
        seconds=kind.seconds,
        stream=kind.stream,
        paced=kind.paced,
        subject_pid=running.process.pid if running.process else 0,
        upstream_pid=upstream_pid,
        cores=tuple({cores.subject, cores.load}),
    )
    command = processes.python_module(
        "tests.bench.router.load", "--core", str(cores.load), json.dumps(dataclasses.asdict(job))
    )
    done = subprocess.run(
        command, cwd=environments.ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise MeasureError(f"{name}, {kind.name}: load generator failed: {done.stderr.strip()[-600:]}")
    measured = load.Measurement(**json.loads(done.stdout))
    if measured.errors or not measured.samples:
        raise MeasureError(
            f"{name}, {kind.name}: {measured.errors} errors in {measured.samples} answers; "
            f"first: {measured.first_error}"
        )
    return measured


def compare(
    ours: Sequence[load.Measurement],
    theirs: Sequence[load.Measurement],
    how: Callable[[load.Measurement, load.Measurement], float],
) -> float:
    """Return the median over the rounds of a comparison between two windows of the same round."""
    return statistics.median(how(a, b) for a, b in zip(ours, theirs, strict=True))


def median(windows: Sequence[load.Measurement], field: str) -> float:
    """Return the median of one figure over the rounds."""
    return statistics.median(float(getattr(window, field)) for window in windows)
