"""Start-up of the egress service: settings, logs, app, serve. Nothing else."""

import asyncio
import sys

from kars_common import logs, telemetry
from kars_common.errors import KarsError
from kars_common.identity import FileSvidSource
from kars_common.settings import load

from kars_egress.app import EgressApp
from kars_egress.settings import EgressSettings


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    try:
        settings = load(EgressSettings)
    except KarsError as exc:
        sys.stderr.write(f"kars-egress: {exc}\n")
        return 2
    logs.configure("kars-egress", settings.log_level)
    telemetry.configure_tracing("kars-egress", settings.otlp_endpoint)
    try:
        return asyncio.run(_run(settings))
    except KarsError as exc:
        sys.stderr.write(f"kars-egress: {exc}\n")
        return 1
    finally:
        telemetry.shutdown_tracing()


async def _run(settings: EgressSettings) -> int:
    app = EgressApp(settings, FileSvidSource(settings.svid_dir), FileSvidSource(settings.envoy_svid_dir))
    return await app.run()


if __name__ == "__main__":
    sys.exit(main())
