"""A relay process with policy in force, and what tests ask of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from kars.mesh.v1 import policy_pb2, relay_pb2, relay_pb2_grpc
from kars_common.rpc import from_rpc_error

from kars_relay_testkit.client import PeerStream, Received, channel
from kars_relay_testkit.process import RelayProcess
from kars_relay_testkit.world import MeshWorld, TestPeer, edges

SMALL = policy_pb2.MeshQuota(
    send_rate=100, send_burst=50, mailbox_envelopes=40, mailbox_bytes=400_000, sender_share_percent=50
)
LARGE = policy_pb2.MeshQuota(
    send_rate=100_000, send_burst=100_000, send_bytes_rate=2**30, send_bytes_burst=2**30, mailbox_bytes=2**30
)


@dataclass
class House:
    """A relay: namespace `team` may write to itself, any other to nobody; peer `small` has a small quota."""

    world: MeshWorld
    relay: RelayProcess

    @property
    def port(self) -> int:
        """Port of the main listener."""
        return self.relay.ports["main"]

    def stream(self, peer: TestPeer, window: relay_pb2.Window | None = None) -> PeerStream:
        """Return a stream of a peer, not opened."""
        return PeerStream(peer, self.port, window)


def make_house(directory: Path, **settings: str) -> Iterator[House]:
    """Run a relay."""
    world = MeshWorld()
    team = f"spiffe://{world.trust_domain}/ns/team/sandbox/*"
    small = f"spiffe://{world.trust_domain}/ns/team/sandbox/small"
    rules = world.rules(
        edges((team, team)),
        quota=LARGE,
        peer_quotas=[policy_pb2.PeerQuota(peer=small, quota=SMALL)],
        sealed_recipients=[team],
    )
    world.write_relay(directory, rules)
    defaults = {"CONNECT_TIMEOUT_S": "1", "STALL_S": "2", "SWEEP_S": "0.2", "SEALED_ADDRESS": "127.0.0.1:0"}
    with RelayProcess(directory=directory, settings=defaults | settings) as relay:
        relay.start()
        yield House(world, relay)


def reason(failure: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Return reason and close code of a failed call."""
    error = from_rpc_error(failure)
    return error.reason, error.metadata.get("close_code", "")


def texts(received: Sequence[Received]) -> list[bytes]:
    """Return payloads."""
    return [item.payload for item in received]


async def registered(house: House, *names: str) -> list[TestPeer]:
    """Return peers that have a mailbox: they were attached once."""
    peers = [house.world.peer(name) for name in names]
    for peer in peers:
        async with house.stream(peer):
            pass
    return peers


async def mailboxes(house: House) -> dict[str, relay_pb2.MailboxStatus]:
    """Return all mailboxes, as an operator sees them."""
    async with channel(house.world.authority.operator("olga"), house.port) as operator:
        stub = relay_pb2_grpc.RelayStatusStub(operator)
        answer: relay_pb2.ListMailboxesResponse = await stub.ListMailboxes(
            relay_pb2.ListMailboxesRequest(page_size=1000), timeout=5
        )
        return {box.peer: box for box in answer.mailboxes}


async def stored(house: House, peer: TestPeer) -> int:
    """Return how many envelopes wait for a peer."""
    return (await mailboxes(house))[str(peer)].stored_envelopes


async def attached(house: House, peer: TestPeer) -> bool:
    """Tell whether a peer is attached."""
    return (await mailboxes(house))[str(peer)].connected


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
