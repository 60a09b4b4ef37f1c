"""Starts listeners where they were before, if that is still free.

Routers keep running while the controller is away and come back to the address they know; with port 0 the
port of the last run is tried first.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kars_common.errors import UnavailableError
from kars_common.rpc import RpcServer


@dataclass(frozen=True)
class Remembered:
    """Endpoints of the last run; empty when there was none."""

    main: str = ""
    bootstrap: str = ""


def remembered(path: Path) -> Remembered:
    """Read the last run's endpoints from dev.json; anything unreadable means none."""
    try:
        controller = json.loads(path.read_text("utf-8"))["controller"]
        return Remembered(str(controller["endpoint"]), str(controller["bootstrapEndpoint"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Remembered()


async def start(build: Callable[[str], RpcServer], address: str, before: str) -> tuple[str, RpcServer]:
    """Start a server and return its endpoint: at `address`, at its last port when that is port 0.

    Raises:
        UnavailableError: `address_unavailable`.
    """
    host, _, port = address.rpartition(":")
    if port == "0" and before.rpartition(":")[0] == host:
        server = build(before)
        try:
            await server.start()
        except UnavailableError:
            await server.stop(0)
        else:
            return before, server
    server = build(address)
    return f"{host}:{await server.start()}", server
