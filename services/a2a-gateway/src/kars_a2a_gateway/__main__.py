"""Start-up of the gateway: settings, logs, app, serve. Nothing else."""

import asyncio
import gc
import sys

import uvloop
from kars_common import logs, telemetry
from kars_common.errors import KarsError
from kars_common.settings import load

from kars_a2a_gateway.app import GatewayApp
from kars_a2a_gateway.settings import GatewaySettings


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    try:
        settings = load(GatewaySettings)
    except KarsError as exc:
        sys.stderr.write(f"kars-a2a-gateway: {exc}\n")
        return 2
    logs.configure("kars-a2a-gateway", settings.log_level)
    telemetry.configure_tracing("kars-a2a-gateway", settings.otlp_endpoint)
    gc.set_threshold(50_000, 20, 50)  # requests make short-lived objects and hardly a cycle
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(GatewayApp(settings).run())
    except KarsError as exc:
        sys.stderr.write(f"kars-a2a-gateway: {exc}\n")
        return 1
    finally:
        telemetry.shutdown_tracing()


if __name__ == "__main__":
    sys.exit(main())
