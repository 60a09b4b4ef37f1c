"""Entry of `make bench-mesh`: runs the parts, prints their tables, merges them into build/bench/mesh.json.

A part is a module beside this file with `measure(rounds) -> Part`; naming it in `PARTS` is all it takes.
Exit code 0 when everything was measured, whatever the figures are. Figures of parts that did not run this
time stay in the file; `<part>_measured_at` says from when they are.
"""

import argparse
import importlib
import json
import site
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OUT = ROOT / "build" / "bench" / "mesh.json"
PARTS = ("crypto", "relay")


def main() -> int:
    """Run the benchmark; returns the exit code."""
    sys.path.insert(0, str(ROOT))
    # Late: the path must be set first.
    from rich.console import Console

    from tests.bench.router import environments

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7, help="how often each subject is measured")
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="run only these parts")
    given = arguments.parse_args()
    try:
        folder = environments.ensure_envoy()  # the group `bench`, which holds the peers of this one, too
    except environments.InstallError as exc:
        sys.stderr.write(f"bench-mesh: {exc}\n")
        return 1
    for packages in sorted(folder.glob("lib/python*/site-packages")):
        site.addsitedir(str(packages))
    console = Console(width=110)
    figures = _last()
    for name in given.only:
        console.print(f"[bold]{name}[/bold]: {given.rounds} rounds")
        begin = time.monotonic()
        part = importlib.import_module(f"tests.bench.mesh.{name}").measure(given.rounds)
        figures |= part.figures | {f"{name}_measured_at": int(time.time())}
        for table in part.tables:
            console.print(table)
        for target in part.targets:
            value = part.figures[target.figure]
            met = "met" if target.met(float(value)) else "MISSED"
            sign = "at most" if target.at_most else "at least"
            console.print(f"  {met:7} {target.text}: {value} ({sign} {target.bound:g})")
        console.print(f"  took {time.monotonic() - begin:.0f} s\n")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    console.print(f"wrote {OUT.relative_to(ROOT)}")
    return 0


def _last() -> dict[str, float | int | str]:
    try:
        document = json.loads(OUT.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
