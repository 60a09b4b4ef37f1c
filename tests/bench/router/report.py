"""Turns measurements into figures, a table for people and a flat JSON object for programs.

Targets are shown as met or missed, never asserted: the figures are the product.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.router import load, rounds
from tests.bench.router.procfs import Memory

OURS = "kars"
Figures = dict[str, float | int | str | list[float]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What issue and architecture promise for one figure."""

    figure: str
    text: str
    bound: float
    at_most: bool

    def met(self, value: float) -> bool:
        """Tell whether a value keeps the promise."""
        return value <= self.bound if self.at_most else value >= self.bound


TARGETS = (
    Target(figure="added_p50_ms", text="adds at p50, one connection (ms)", bound=1.0, at_most=True),
    Target(figure="rps_vs_litellm", text="times LiteLLM's requests a second", bound=20.0, at_most=False),
    Target(figure="rps_vs_envoy", text="of bare Envoy's requests a second", bound=0.20, at_most=False),
    Target(
        figure="rps_per_busy_core_vs_envoy", text="the same for each CPU second", bound=0.20, at_most=False
    ),
    Target(figure="rss_mib", text="peak resident memory (MiB)", bound=120.0, at_most=True),
)


def figures(results: rounds.Results, memories: Mapping[str, Memory], facts: Mapping[str, str]) -> Figures:
    """Return everything that was measured, flat: promised figures first, then raw ones by subject.

    Figures that compare are there only for the subjects that took part.
    """
    found: Figures = {}
    if OURS in results:
        found |= _promised(results, memories)
    for name, by_load in results.items():
        found |= _raw(name, by_load)
        if name in memories:
            found[f"{name}_rss_mib"] = round(memories[name].now_mib, 1)
            found[f"{name}_peak_rss_mib"] = round(memories[name].peak_mib, 1)
    windows = [window for by_load in results.values() for each in by_load.values() for window in each]
    found["foreign_cpu_share"] = round(rounds.median(windows, "foreign_cpu"), 3)
    return found | dict(facts)


def _promised(results: rounds.Results, memories: Mapping[str, Memory]) -> Figures:
    promised: Figures = {}
    for peer in ("envoy", "litellm"):
        if peer in results:
            windows = results[OURS]["buffered"], results[peer]["buffered"]
            promised[f"rps_vs_{peer}"] = round(
                rounds.compare(*windows, lambda a, b: a.per_second / b.per_second), 3
            )
            promised[f"rps_per_busy_core_vs_{peer}"] = round(
                rounds.compare(*windows, lambda a, b: _per_busy_core(a) / _per_busy_core(b)), 3
            )
    if "direct" in results:
        promised["added_p50_ms"] = _added(results, OURS, "one_buffered", "p50_ms")
        promised["added_p99_ms"] = _added(results, OURS, "one_buffered", "p99_ms")
        promised["added_ttft_ms"] = _added(results, OURS, "one_paced", "ttft_p50_ms")
    promised["rss_mib"] = round(memories[OURS].peak_mib, 1)
    return promised


def _added(results: rounds.Results, name: str, kind: str, field: str) -> float:
    added = rounds.compare(
        results[name][kind],
        results["direct"][kind],
        lambda a, b: float(getattr(a, field) - getattr(b, field)),
    )
    return round(added, 4)


def _raw(name: str, by_load: Mapping[str, Sequence[load.Measurement]]) -> Figures:
    buffered, streamed = by_load["buffered"], by_load["streamed"]
    one, paced = by_load["one_buffered"], by_load["one_paced"]
    return {
        f"{name}_rps": round(rounds.median(buffered, "per_second"), 1),
        f"{name}_rps_rounds": [round(window.per_second, 1) for window in buffered],
        f"{name}_rps_cpu_share": round(rounds.median(buffered, "subject_cpu"), 3),
        f"{name}_rps_per_busy_core": round(statistics.median(map(_per_busy_core, buffered)), 1),
        f"{name}_rps_load_cpu_share": round(rounds.median(buffered, "load_cpu"), 3),
        f"{name}_rps_p99_ms": round(rounds.median(buffered, "p99_ms"), 4),
        f"{name}_streams_per_s": round(rounds.median(streamed, "per_second"), 1),
        f"{name}_streams_per_s_rounds": [round(window.per_second, 1) for window in streamed],
        f"{name}_streams_cpu_share": round(rounds.median(streamed, "subject_cpu"), 3),
        f"{name}_p50_ms": round(rounds.median(one, "p50_ms"), 4),
        f"{name}_p99_ms": round(rounds.median(one, "p99_ms"), 4),
        f"{name}_ttft_ms": round(rounds.median(paced, "ttft_p50_ms"), 4),
        f"{name}_ttft_p99_ms": round(rounds.median(paced, "ttft_p99_ms"), 4),
    }


def _per_busy_core(window: load.Measurement) -> float:
    """Return requests for each CPU second that the subject used: other jobs on the machine hardly move it."""
    return window.per_second / window.subject_cpu if window.subject_cpu else 0.0


def write(path: Path, found: Figures) -> None:
    """Write the figures as one flat JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def show(
    console: Console,
    results: rounds.Results,
    memories: Mapping[str, Memory],
    titles: Mapping[str, str],
    found: Figures,
) -> None:
    """Print the comparison and the promises."""
    console.print(_comparison(results, memories, titles))
    if OURS in results:
        console.print(_promises(found))
    if _busy(found):
        console.print(
            f"[yellow]others used {found['foreign_cpu_share']:.0%} of a core meanwhile, and subjects suffer "
            "unequally from that: run again on a quiet machine before believing a verdict"
        )


def _busy(found: Figures) -> bool:
    foreign = found["foreign_cpu_share"]
    return isinstance(foreign, float) and foreign > 0.1


def _comparison(results: rounds.Results, memories: Mapping[str, Memory], titles: Mapping[str, str]) -> Table:
    table = Table(title="Router benchmark: medians over the rounds", title_justify="left")
    table.add_column("subject")
    columns = (
        "requests/s\n16 conns", "its core\nbusy", "streams/s\n16 conns", "added p50\nms, 1 conn",
        "added p99\nms, 1 conn", "added TTFT\nms, 1 conn", "RSS now / peak\nMiB",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right")
    for name, by_load in results.items():
        memory = memories.get(name)
        compare = name != "direct" and "direct" in results
        latencies = (("one_buffered", "p50_ms"), ("one_buffered", "p99_ms"), ("one_paced", "ttft_p50_ms"))
        table.add_row(
            titles[name],
            f"{rounds.median(by_load['buffered'], 'per_second'):,.0f}",
            f"{rounds.median(by_load['buffered'], 'subject_cpu'):.0%}" if memory else "-",
            f"{rounds.median(by_load['streamed'], 'per_second'):,.0f}",
            *(
                f"{_added(results, name, kind, field):.3f}"
                if compare
                else f"({rounds.median(by_load[kind], field):.3f})"
                for kind, field in latencies
            ),
            f"{memory.now_mib:.0f} / {memory.peak_mib:.0f}" if memory else "-",
        )
    table.caption = "(in brackets: absolute, not added)"
    return table


def _promises(found: Figures) -> Table:
    table = Table(title="Promises", title_justify="left")
    table.add_column("ours, everything on")
    for column in ("measured", "promised", ""):
        table.add_column(column, justify="right")
    for target in TARGETS:
        value = found.get(target.figure)
        if not isinstance(value, float):
            table.add_row(target.text, "-", "", "[yellow]not measured")
            continue
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        verdict = "[green]met" if target.met(value) else "[red]MISSED"
        table.add_row(
            target.text, f"{value:.3f}", bound, verdict + (" (busy machine)" if _busy(found) else "")
        )
    return table
