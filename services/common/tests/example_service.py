"""A whole service on kars_common, as the README shows it; `test_example_service.py` runs it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from kars.policy.v1 import policy_pb2_grpc
from kars_common.identity import ControllerSvidSource, JoinToken
from kars_common.policy import PolicyWatch, load_keys
from kars_common.policy.watch import Apply
from kars_common.rpc import AuthorizationTable, PeerChannel, RpcServer
from kars_common.spiffe import SpiffeId

TABLE = AuthorizationTable({"kars.policy.v1.PolicyEnforcement/GetInForce": ["svc/controller", "operator/*"]})


async def serve(
    *,
    directory: Path,
    bootstrap_endpoint: str,
    controller_endpoint: str,
    apply: Apply,
    servicer_of: Callable[[PolicyWatch], policy_pb2_grpc.PolicyEnforcementServicer],
    on_ready: Callable[[int], None],
    stopping: asyncio.Event,
) -> None:
    # [service]
    source = ControllerSvidSource(
        SpiffeId.sandbox("kars.local", "team", "writer"),
        bootstrap_endpoint=bootstrap_endpoint,
        controller_endpoint=controller_endpoint,
        trust_bundle_file=directory / "trust.pem",
        attestation=JoinToken(directory / "join-token"),
        state_directory=directory / "svid",
    )
    controller = PeerChannel(source, controller_endpoint, "controller.svc.kars.local")
    keys = load_keys(directory / "keys.json")
    watch = PolicyWatch(controller, ("team", "writer"), keys, directory / "policy", apply)
    watch.load()  # the last good bundle, controller or not
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(source.run(), name="identity"),
            tasks.create_task(watch.run(), name="policy watch"),
        ]
        await source.wait_changed(None)
        server = RpcServer(source, TABLE, "127.0.0.1:0")
        server.add(policy_pb2_grpc.add_PolicyEnforcementServicer_to_server, servicer_of(watch))
        on_ready(await server.start())
        await stopping.wait()
        await server.stop(grace_s=20)  # not ready, drain, close
        for task in running:
            task.cancel()
    await controller.close()
    # [/service]
