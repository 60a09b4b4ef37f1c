"""Numbers for scrapers: what happened is counted, and nobody's name is a label."""

import urllib.request
from pathlib import Path

from kars.mesh.v1 import relay_pb2, relay_pb2_grpc
from kars_relay_testkit import channel
from kars_relay_testkit.house import make_house, registered


async def test_metrics_and_status_count_what_happened_and_name_nobody(tmp_path: Path) -> None:
    for house in make_house(tmp_path, METRICS_ADDRESS="127.0.0.1:0"):
        alice, bob = await registered(house, "alice", "bob")
        async with house.stream(alice) as sender:
            await sender.send(bob, [b"one", b"two"])
            await sender.send("spiffe://kars.local/ns/closed/sandbox/x", [b"no"])
            url = f"http://127.0.0.1:{house.relay.ports['metrics']}/metrics"
            text = urllib.request.urlopen(url, timeout=5).read().decode()
            async with channel(house.world.authority.operator("olga"), house.port) as operator:
                stub = relay_pb2_grpc.RelayStatusStub(operator)
                status = await stub.GetStatus(relay_pb2.GetStatusRequest(), timeout=5)
        for line in (
            'kars_mesh_refused_envelopes_total{reason="edge_forbidden"} 1.0',
            "kars_mesh_stored_envelopes 2.0",
            "kars_mesh_accepted_envelopes 2.0",
            "kars_mesh_attached_peers 1.0",
            "kars_mesh_malformed_frames_total 0.0",
        ):
            assert line in text
        assert "alice" not in text
        assert (status.relay, status.store) == ("spiffe://kars.local/svc/relay", "sqlite")
        assert (status.accepted_envelopes, status.refused_envelopes) == (2, 1)
        assert (status.connected_peers, status.stored_envelopes, status.policy_version) == (1, 2, 1)
