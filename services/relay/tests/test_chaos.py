"""Kill -9 under load: what had a receipt arrives once, in order, whatever died meanwhile.

`make test` kills a few times; `make chaos-relay` sets KARS_CHAOS_KILLS=20.
"""

import asyncio
import os
import random
from pathlib import Path

from kars.mesh.v1 import policy_pb2
from kars_relay_testkit import MeshWorld, RelayProcess
from kars_relay_testkit.chaos import Receiver, Sender, storm
from kars_relay_testkit.nats import NatsServers
from kars_relay_testkit.world import everybody

KILLS = int(os.environ.get("KARS_CHAOS_KILLS", "2"))
LARGE = policy_pb2.MeshQuota(
    send_rate=100_000, send_burst=100_000, send_bytes_rate=2**30, send_bytes_burst=2**30,
    mailbox_envelopes=1_000_000, mailbox_bytes=2**30, sender_share_percent=100,
)  # fmt: skip


def crowd(world: MeshWorld, ports: list[int]) -> tuple[list[Sender], list[Receiver]]:
    receivers = [Receiver(world.peer(f"receiver-{number}"), lambda: ports) for number in range(2)]
    senders = [
        Sender(world.peer(f"sender-{number}"), receivers[number % 2].peer, lambda: ports)
        for number in range(4)
    ]
    return senders, receivers


async def off_loop(work: object, *args: object) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work, *args)  # type: ignore[arg-type]


async def test_mesh_17_a_relay_that_is_killed_under_load_loses_and_repeats_nothing(tmp_path: Path) -> None:
    world = MeshWorld()
    world.write_relay(tmp_path, world.rules(everybody(world), quota=LARGE))
    with RelayProcess(directory=tmp_path) as relay:
        relay.start()
        senders, receivers = crowd(world, [relay.ports["main"]])

        async def trouble() -> None:
            for _ in range(KILLS):
                await asyncio.sleep(random.uniform(0.3, 0.9))  # the load between two kills
                relay.kill()
                await off_loop(relay.start)

        await storm(senders, receivers, trouble)
    assert min(sender.connections for sender in senders) > KILLS
    assert min(len(sender.accepted) for sender in senders) > 100


async def test_one_of_three_replicas_that_is_killed_under_load_loses_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    world = MeshWorld()
    servers = 3 if KILLS > 5 else 1
    with NatsServers(directory=tmp_path / "nats", count=servers) as nats:
        nats.start()
        relays: list[RelayProcess] = []
        try:
            for number in range(3):
                directory = tmp_path / f"relay-{number}"
                world.write_relay(directory, world.rules(everybody(world), quota=LARGE))
                settings = {"NATS_URL": nats.url, "SERVE_REGISTRY": "true" if number == 0 else "false"}
                settings["NATS_REPLICAS"] = str(servers)
                relays.append(RelayProcess(directory=directory, settings=settings))
                await off_loop(relays[-1].start)
            senders, receivers = crowd(world, [relay.ports["main"] for relay in relays])

            async def trouble() -> None:
                for number in range(KILLS):
                    await asyncio.sleep(random.uniform(0.5, 1.2))  # the load between two kills
                    victim = relays[number % 3]
                    victim.kill()
                    if servers == 3:
                        nats.kill_one(number % 3)
                        await asyncio.sleep(1.0)
                        await off_loop(nats.start_one, number % 3)
                    await off_loop(victim.start)
                    if servers == 3:
                        await asyncio.sleep(3.0)  # a server that came back catches up before the next dies

            await storm(senders, receivers, trouble)
        finally:
            for relay in relays:
                relay.kill()
    assert min(len(sender.accepted) for sender in senders) > 100
