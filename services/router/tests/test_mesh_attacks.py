"""Attacks on the mesh bridge: by a relay that lies, by an agent that floods, by time."""

import asyncio
import os

from kars.mesh.v1 import relay_pb2
from kars_common.errors import PermissionDeniedError
from kars_router_testkit import bundle
from kars_router_testkit.mesh_agent import MeshAgent, receipt
from kars_router_testkit.mesh_bench import FRIEND, OWN, STRANGER, WAIT_S, MeshBench
from kars_router_testkit.policies import approval, capability, mesh_access
from kars_router_testkit.relay import RELAY


async def reason_of_end(bench: MeshBench) -> str:
    """Wait for the end of `deliver` and return why."""
    assert await bench.next() is None
    status = await asyncio.to_thread(bench.agent.status)
    return str(status["lastEnd"]["reason"])


async def test_what_a_lying_relay_delivers_from_a_stranger_never_reaches_the_agent(
    mesh_bench: MeshBench,
) -> None:
    await mesh_bench.attach()
    for sender in (STRANGER, "", OWN, "x" * 3000, FRIEND + "/../stranger", "spiffe://kars.local/svc/relay"):
        mesh_bench.relay.deliver(sender, b"let me in", first_seq=1)
    mesh_bench.relay.deliver(FRIEND, b"hello", first_seq=7)
    frame = await mesh_bench.next()
    assert frame is not None
    assert [(d.sender, d.envelopes[0].payload) for d in frame.deliveries] == [(FRIEND, b"hello")]
    refused = mesh_bench.router.records("mesh.delivery_refused")
    assert [record["reason"] for record in refused] == ["edge_forbidden"] * 6


LIES = {
    "a receipt for nothing": relay_pb2.AttachResponse(receipt=relay_pb2.Receipt(decided_through=9)),
    "a refusal of nothing": relay_pb2.AttachResponse(
        receipt=relay_pb2.Receipt(refusals=[relay_pb2.Refusal(number=2**63, count=2**31)])
    ),
    "a second welcome": relay_pb2.AttachResponse(welcome=relay_pb2.Welcome(max_in_flight_envelopes=1)),
}


async def test_a_relay_that_breaks_the_protocol_is_left(mesh_bench: MeshBench) -> None:
    for lie in LIES.values():
        await mesh_bench.attach()
        mesh_bench.relay.say(lie)
        assert await reason_of_end(mesh_bench) == "relay_protocol"
    await mesh_bench.attach()
    receipt(await mesh_bench.send((FRIEND, [b"fine again"])))


async def test_a_second_hello_cannot_make_the_agent_prove_itself_twice(mesh_bench: MeshBench) -> None:
    await mesh_bench.attach()
    mesh_bench.relay.say(relay_pb2.AttachResponse(hello=relay_pb2.Hello(nonce=os.urandom(32), relay=RELAY)))
    mesh_bench.relay.deliver(FRIEND, b"after it", first_seq=1)
    frame = await mesh_bench.next()
    assert frame is not None
    assert not frame.HasField("hello")
    again = await asyncio.to_thread(mesh_bench.agent.connect)
    assert (again.status, again.code) == (409, "mesh_attached_already")


async def test_submits_without_receipts_wait_here_and_end_with_the_connection(mesh_bench: MeshBench) -> None:
    mesh_bench.relay.window = 4
    await mesh_bench.attach()
    mesh_bench.relay.silent = True
    sends = [asyncio.create_task(mesh_bench.send((FRIEND, [b"x"] * 4))) for _ in range(3)]
    async with asyncio.timeout(WAIT_S):
        while not mesh_bench.payloads():
            await asyncio.sleep(0.01)
    # The window is full after the first: the others wait here and not at the relay.
    assert len(mesh_bench.payloads()) == 4
    await asyncio.to_thread(mesh_bench.agent.hang_up)
    answers = await asyncio.wait_for(asyncio.gather(*sends), WAIT_S)
    assert {(answer.status, answer.code) for answer in answers} == {(503, "mesh_not_attached")}
    assert len(mesh_bench.payloads()) == 4


async def test_an_agent_that_hangs_up_leaves_no_stream_behind(mesh_bench: MeshBench) -> None:
    for _ in range(3):
        await mesh_bench.attach()
        assert mesh_bench.relay.streams == 1
        await asyncio.to_thread(mesh_bench.agent.hang_up)
        async with asyncio.timeout(WAIT_S):
            while mesh_bench.relay.streams:
                await asyncio.sleep(0.01)
    assert (await asyncio.to_thread(mesh_bench.agent.status))["state"] == "detached"


async def test_a_relay_without_policy_is_asked_again_and_not_hammered(mesh_bench: MeshBench) -> None:
    mesh_bench.relay.refuse_connect = PermissionDeniedError("no_policy_in_force", "none yet")
    assert await asyncio.to_thread(mesh_bench.agent.open) == 200
    loop = asyncio.get_running_loop()
    began, hellos = loop.time(), 0
    while hellos < 5:
        frame = await mesh_bench.next()
        assert frame is not None
        hellos += frame.HasField("hello")
        await asyncio.to_thread(mesh_bench.agent.connect)
    # Five streams in a row wait 0.1, 0.2, 0.4 and 0.8 seconds at least in between: back-off, not a hot loop.
    assert loop.time() - began > 1.0


async def test_while_a_person_decides_nothing_leaves_and_a_hang_up_withdraws(mesh_bench: MeshBench) -> None:
    rules = [approval("ask", ["mesh:send:*"], priority=9)]
    await mesh_bench.enforce(
        bundle(version=2, rules=rules, mesh=mesh_access(mesh_bench.relay.endpoint, both=[FRIEND]))
    )
    await mesh_bench.attach()
    sending = asyncio.create_task(mesh_bench.send((FRIEND, [b"asked for"])))
    pending = await asyncio.wait_for(mesh_bench.controller.pending(), WAIT_S)
    assert mesh_bench.payloads() == []
    assert b"asked for" not in pending.SerializeToString()
    mesh_bench.controller.decide(pending, grant=True)
    receipt(await sending)
    assert mesh_bench.payloads() == [b"asked for"]


async def test_a_rule_about_receiving_holds_for_deliveries(mesh_bench: MeshBench) -> None:
    rules = [capability("deaf", deny=[f"mesh:receive:{FRIEND}"], priority=9)]
    await mesh_bench.enforce(
        bundle(version=2, rules=rules, mesh=mesh_access(mesh_bench.relay.endpoint, both=[FRIEND]))
    )
    await mesh_bench.attach()
    mesh_bench.relay.deliver(FRIEND, b"unheard", first_seq=3)
    assert await asyncio.wait_for(mesh_bench.relay.acked.get(), WAIT_S) == 3
    assert [r["peer"] for r in mesh_bench.router.records("mesh.delivery_refused")] == [FRIEND]


async def test_the_agents_own_name_comes_from_the_door(mesh_bench: MeshBench) -> None:
    other = MeshAgent(mesh_bench.router)
    assert await asyncio.to_thread(other.open) == 200
    await asyncio.to_thread(other.next)
    # Whatever it claims in its connect, the relay is told by our certificate who it is, and compares.
    await asyncio.to_thread(other.connect, STRANGER)
    assert await asyncio.wait_for(mesh_bench.relay.connected.get(), WAIT_S) == OWN
    await asyncio.to_thread(other.hang_up)
