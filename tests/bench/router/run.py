"""Entry of `make bench-router`.

Exit code 0 when everything was measured, whatever the figures are; 1 when
something did not run, with one line that says what.
"""

import argparse
import signal
import sys
from pathlib import Path


def main() -> int:
    """Run the benchmark; returns the exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    # Late: the path must be set first.
    from tests.bench.router import bench, environments, processes, rounds

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5, help="how often each subject is measured")
    arguments.add_argument(
        "--only", nargs="+", choices=bench.NAMES, default=bench.NAMES, metavar="SUBJECT",
        help=f"compare only these of: {', '.join(bench.NAMES)}",
    )  # fmt: skip
    arguments.add_argument(
        "--hold", action="store_true", help="start the subjects, print where they are, measure nothing, wait"
    )
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that no subject is left behind
    try:
        if given.hold:
            bench.hold(given.only)
        else:
            bench.run(given.only, given.rounds)
    except (environments.InstallError, processes.NotReadyError, rounds.MeasureError) as exc:
        return _failed(exc)
    return 0


def _failed(exc: Exception) -> int:
    print(f"bench-router: {exc}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
