"""Start-up of the router: settings, logs, app, serve. Nothing else."""

import asyncio
import gc
import sys

import uvloop
from kars_common import logs, telemetry
from kars_common.errors import KarsError
from kars_common.settings import load

from kars_router.app import RouterApp
from kars_router.settings import RouterSettings


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    try:
        settings = load(RouterSettings)
    except KarsError as exc:
        sys.stderr.write(f"kars-router: {exc}\n")
        return 2
    logs.configure("kars-router", settings.log_level)
    telemetry.configure_tracing("kars-router", settings.otlp_endpoint)
    # A request makes hundreds of short-lived objects and no cycles to speak of: collect rarely.
    gc.set_threshold(50_000, 20, 50)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(RouterApp(settings).run())
    except KarsError as exc:
        sys.stderr.write(f"kars-router: {exc}\n")
        return 1
    finally:
        telemetry.shutdown_tracing()


if __name__ == "__main__":
    sys.exit(main())
