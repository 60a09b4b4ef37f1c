"""Start-up of the relay: settings, logs, app, serve. Nothing else."""

import asyncio
import gc
import sys

import uvloop
from kars_common import logs, telemetry
from kars_common.errors import KarsError
from kars_common.settings import load

from kars_relay.app import RelayApp
from kars_relay.settings import RelaySettings


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    try:
        settings = load(RelaySettings)
    except KarsError as exc:
        sys.stderr.write(f"kars-relay: {exc}\n")
        return 2
    logs.configure("kars-relay", settings.log_level)
    telemetry.configure_tracing("kars-relay", settings.otlp_endpoint)
    # Envelopes make many short-lived objects and no cycles to speak of: collect rarely.
    gc.set_threshold(50_000, 20, 50)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(RelayApp(settings).run())
    except KarsError as exc:
        sys.stderr.write(f"kars-relay: {exc}\n")
        return 1
    finally:
        telemetry.shutdown_tracing()


if __name__ == "__main__":
    sys.exit(main())
