"""`python -m kars_controller`: settings, logs, serve until SIGTERM."""

import asyncio
import logging
import signal
import sys

from kars_common import logs, telemetry
from kars_common.errors import KarsError
from kars_common.settings import load

from kars_controller.app import Controller
from kars_controller.settings import ControllerSettings

_LOG = logging.getLogger(__name__)


async def _serve(settings: ControllerSettings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await Controller(settings).serve(stopping)


def main() -> int:
    """Run; the exit code is 0 after a stop that was asked for."""
    try:
        settings = load(ControllerSettings)
        logs.configure("kars-controller", settings.log_level)
        telemetry.configure_tracing("kars-controller", settings.otlp_endpoint)
        asyncio.run(_serve(settings))
    except KarsError as exc:
        print(f"kars-controller: {exc}", file=sys.stderr)  # noqa: T201 - logs may not be configured yet
        return 2
    except BaseExceptionGroup as group:
        _LOG.critical("controller failed", exc_info=group)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
