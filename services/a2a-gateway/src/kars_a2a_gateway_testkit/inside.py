"""The inside as one process: the sample agent on loopback, and the router's door in front of it.

    python -m kars_a2a_gateway_testkit.inside DIRECTORY

DIRECTORY holds `inside.json` (what to start) and the router's identity; the ports are written to
`ports.json`.
"""

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop
from kars.a2a.v1 import delivery_pb2_grpc
from kars_common import files
from kars_common.identity import FileSvidSource
from kars_common.rpc import AuthorizationTable, RpcServer, ServerLimits
from kars_router.a2a.agent import AgentServer
from kars_router.a2a.delivery import Deliveries
from kars_router.api.a2a import RULES, AgentDeliveryServicer

from kars_a2a_gateway_testkit.sample_agent import sample_app

_LIMITS = ServerLimits(max_concurrent_streams=8192, max_concurrent_rpcs=16384)


async def main(directory: Path) -> None:
    """Serve until SIGTERM."""
    wanted = json.loads((directory / "inside.json").read_text())
    listener = socket.create_server(("127.0.0.1", wanted.get("agent_port", 0)))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    card_key = directory / "card-key.json"
    app = sample_app(
        url,
        streaming=wanted.get("streaming", True),
        required_extension=wanted.get("required_extension", False),
        card_key=card_key if card_key.exists() else None,
    )
    agent = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="on", loop="none", timeout_graceful_shutdown=1)
    )
    server = AgentServer(url, wake_timeout_s=wanted.get("wake_timeout_s", 5.0))
    door = RpcServer(
        FileSvidSource(directory / "svid"),
        AuthorizationTable(RULES),
        f"127.0.0.1:{wanted.get('door_port', 0)}",
        limits=_LIMITS,
    )
    servicer = AgentDeliveryServicer((wanted["namespace"], wanted["name"]), Deliveries(server))
    door.add(delivery_pb2_grpc.add_AgentDeliveryServicer_to_server, servicer)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(agent.serve(sockets=[listener]), name="agent")
    while not agent.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    ports = {"door": await door.start(), "agent": listener.getsockname()[1]}
    files.replace(directory / "ports.json", json.dumps(ports).encode())
    await stop.wait()
    await door.stop(0.1)
    agent.should_exit = True
    agent.force_exit = True
    await serving
    await server.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1])))
