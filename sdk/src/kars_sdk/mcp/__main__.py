"""`python -m kars_sdk.mcp`: the tool server on standard input and output, for any framework with MCP.

It reads where it is from the environment (`kars_sdk.mesh.environ`). In a sandbox without a mesh it offers
what the router announces.
"""

import asyncio
import logging
import os
import sys

import httpx2

from kars_sdk.mcp.server import build_server
from kars_sdk.mesh.door import DEFAULT_URL
from kars_sdk.mesh.environ import MeshSettings, open_agent
from kars_sdk.mesh.errors import IdentityError, MeshError


async def serve() -> None:
    """Serve until standard input ends.

    Raises:
        MeshError: there is a mesh, and it cannot be used.
    """
    url = os.environ.get("KARS_ROUTER_URL") or DEFAULT_URL
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as door:
        try:
            settings = MeshSettings.from_environ(os.environ)
        except IdentityError as exc:
            if exc.reason != "mesh_not_configured":
                raise
            await (await build_server(mesh=None, door=door)).run_stdio_async()
            return
        async with open_agent(settings) as mesh:
            await (await build_server(mesh=mesh, door=door)).run_stdio_async()


def main() -> int:
    """Run the server; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    try:
        asyncio.run(serve())
    except MeshError as exc:
        sys.stderr.write(f"kars tools: {exc.reason}: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
