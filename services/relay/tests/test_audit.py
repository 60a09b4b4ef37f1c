"""Every refusal that matters is in the audit log, the log verifies, and no content is in it."""

import os
from pathlib import Path

import grpc
import orjson
import pytest
from kars.mesh.v1 import registry_pb2, relay_pb2
from kars_common.audit import parse_verifier_key, verify_directory
from kars_relay_testkit.house import make_house, reason, registered

from .test_registry import Desk
from .test_sealed import submit


async def test_refusals_and_changes_are_recorded_without_content(tmp_path: Path) -> None:
    canary = os.urandom(16).hex()
    for house in make_house(tmp_path):
        alice, bob = await registered(house, "alice", "bob")
        hidden = house.world.peer("hidden", namespace="closed")
        async with house.stream(alice) as sender:
            await sender.send(bob, [canary.encode()])
            for _ in range(50):
                await sender.send(hidden, [canary.encode()])
        stream = await house.stream(alice).open()
        forged = stream.make_connect()
        forged.proof = bytes(64)
        await stream.call.write(relay_pb2.AttachRequest(connect=forged))
        assert reason(await stream.ended())[0] == "connect_proof_invalid"
        await stream.close()
        async with Desk(house, alice) as desk:
            await desk.register("chat")
            with pytest.raises(grpc.aio.AioRpcError):
                await desk.take(hidden)
            with pytest.raises(grpc.aio.AioRpcError):
                await desk.rate(alice, 1000)
            await desk.stub.Deregister(registry_pb2.DeregisterRequest(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError):
            await submit(house, bob, b"wrong", canary.encode())
        assert house.relay.stop() == 0

    directory = tmp_path / "state" / "audit"
    name, key = parse_verifier_key((directory / "key").read_text())
    assert verify_directory(directory, key).ok
    assert name == "spiffe://kars.local/svc/relay"
    raw = b"".join(path.read_bytes() for path in sorted(directory.glob("*.jsonl")))
    records = [orjson.loads(line) for line in raw.splitlines()]
    seen = {(record["type"], record.get("reason", "")) for record in records}
    assert {
        ("relay.started", ""),
        ("policy.applied", ""),
        ("mesh.refused", "edge_forbidden"),
        ("mesh.attachment_ended", "connect_proof_invalid"),
        ("mesh.registered", ""),
        ("mesh.prekeys_refused", "peer_not_found"),
        ("mesh.rating_refused", "rating_not_allowed"),
        ("mesh.deregistered", ""),
        ("mesh.sealed_refused", "delivery_token_invalid"),
        ("relay.stopped", ""),
    } <= seen
    # What can be repeated without limit is counted, not repeated.
    assert sum(record["type"] == "mesh.refused" for record in records) == 1
    assert canary.encode() not in raw
