"""The agent's door to the mesh, as a process between an agent over HTTP and a relay over mTLS."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kars.mesh.v1 import identity_pb2, registry_pb2, relay_pb2
from kars_common.errors import ConflictError, UnauthenticatedError
from kars_router.mesh.link import REGISTRY_METHODS
from kars_router_testkit import bundle
from kars_router_testkit.mesh_agent import MeshAgent, receipt
from kars_router_testkit.mesh_bench import FRIEND, OTHER, OWN, STRANGER, WAIT_S, MeshBench
from kars_router_testkit.policies import approval, capability, mesh_access
from kars_router_testkit.relay import FakeRelay, gone

SECRET = b"never to be seen in any log 8f1c"


async def test_envelopes_arrive_as_they_are_and_the_answer_says_what_became_of_each(
    mesh_bench: MeshBench,
) -> None:
    mesh_bench.relay.refuse[OTHER] = relay_pb2.REFUSAL_REASON_RECIPIENT_FULL
    await mesh_bench.attach()
    answer = receipt(await mesh_bench.send((FRIEND, [SECRET, b"2"]), (OTHER, [b"3", b"4"]), (FRIEND, [b"5"])))
    assert mesh_bench.payloads() == [SECRET, b"2", b"5", b"3", b"4"]
    assert answer.decided_through == 5
    assert [(r.number, r.reason) for r in answer.refusals] == [
        (3, relay_pb2.REFUSAL_REASON_RECIPIENT_FULL),
        (4, relay_pb2.REFUSAL_REASON_RECIPIENT_FULL),
    ]
    mesh_bench.relay.deliver(FRIEND, b"hello", first_seq=7)
    frame = await mesh_bench.next()
    assert frame is not None
    assert (frame.deliveries[0].sender, frame.deliveries[0].first_seq) == (FRIEND, 7)
    ack = await asyncio.to_thread(mesh_bench.agent.post, "ack", relay_pb2.AttachRequest(ack_through=7))
    assert ack.status == 204
    assert await asyncio.wait_for(mesh_bench.relay.acked.get(), WAIT_S) == 7


async def test_every_send_is_on_record_with_recipient_and_size_and_never_contents(
    mesh_bench: MeshBench,
) -> None:
    await mesh_bench.attach()
    receipt(await mesh_bench.send((FRIEND, [SECRET])))
    mesh_bench.relay.deliver(FRIEND, SECRET)
    assert await mesh_bench.next() is not None
    settled = [r for r in mesh_bench.router.records("call.settled") if r.get("operation") == "send"]
    assert [(r["action"], r["peer"], r["bytes"], r["envelopes"], r["ending"]) for r in settled] == [
        (f"mesh:send:{FRIEND}", FRIEND, len(SECRET), 1, "completed")
    ]
    (delivered,) = mesh_bench.router.records("mesh.delivered")
    assert (delivered["peer"], delivered["bytes"]) == (FRIEND, len(SECRET))
    everything = b"".join(
        path.read_bytes() for path in mesh_bench.router.directory.rglob("*") if path.is_file()
    )
    assert SECRET not in everything
    assert SECRET.hex().encode() not in everything
    assert mesh_bench.router.verified()


async def test_without_an_edge_nothing_leaves_and_the_relay_hears_nothing(mesh_bench: MeshBench) -> None:
    await mesh_bench.attach()
    answer = await mesh_bench.send((STRANGER, [b"x"]))
    assert (answer.status, answer.code) == (403, "edge_forbidden")
    assert mesh_bench.payloads() == []
    mixed = receipt(await mesh_bench.send((STRANGER, [b"x"]), (FRIEND, [b"y"])))
    assert [(r.number, r.reason) for r in mixed.refusals] == [(1, relay_pb2.REFUSAL_REASON_EDGE_FORBIDDEN)]
    assert mesh_bench.payloads() == [b"y"]
    denied = [r["peer"] for r in mesh_bench.router.records("call.denied") if r["reason"] == "edge_forbidden"]
    assert denied == [STRANGER, STRANGER]


async def test_a_revoked_edge_stops_the_next_message_in_both_directions(mesh_bench: MeshBench) -> None:
    await mesh_bench.attach()
    receipt(await mesh_bench.send((FRIEND, [b"1"])))
    await mesh_bench.enforce(bundle(version=2, mesh=mesh_access(mesh_bench.relay.endpoint, both=[OTHER])))
    answer = await mesh_bench.send((FRIEND, [b"2"]))
    assert (answer.status, answer.code) == (403, "edge_forbidden")
    mesh_bench.relay.deliver(FRIEND, b"late", first_seq=1)
    mesh_bench.relay.deliver(OTHER, b"fine", first_seq=2)
    frame = await mesh_bench.next()
    assert frame is not None
    assert [(d.sender, d.first_seq) for d in frame.deliveries] == [(OTHER, 2)]
    # The agent cannot know of what it never got; the router forgets it in its place.
    assert await asyncio.wait_for(mesh_bench.relay.acked.get(), WAIT_S) == 1
    (refused,) = mesh_bench.router.records("mesh.delivery_refused")
    assert (refused["peer"], refused["reason"]) == (FRIEND, "edge_forbidden")


async def test_an_edge_that_ends_ends_by_itself(mesh_bench: MeshBench) -> None:
    access = mesh_access(mesh_bench.relay.endpoint, both=[FRIEND])
    for edge in access["edges"]:
        edge["notAfter"] = "2020-01-01T00:00:00Z"
    await mesh_bench.enforce(bundle(version=2, mesh=access))
    await mesh_bench.attach()
    assert (await mesh_bench.send((FRIEND, [b"1"]))).code == "edge_forbidden"


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ([capability("no", deny=[f"mesh:send:{FRIEND}"], priority=9)], "policy_denied"),
        ([capability("none", deny=["mesh:*"], priority=9)], "policy_denied"),
        ([approval("ask", ["mesh:send:*"], priority=9)], "approval_expired"),
        (
            [
                {
                    "name": "slow",
                    "priority": 9,
                    "rateLimit": {"actions": ["mesh:send:*"], "maxCalls": "1", "windowMs": "60000"},
                }
            ],
            "rate_limit_exceeded",
        ),
    ],
)
async def test_rules_of_a_tool_policy_govern_mesh_messages_as_they_govern_tools(
    mesh_bench: MeshBench, rules: list[dict[str, Any]], code: str
) -> None:
    await mesh_bench.attach()
    receipt(await mesh_bench.send((FRIEND, [b"0"])))
    await mesh_bench.enforce(
        bundle(version=2, rules=rules, mesh=mesh_access(mesh_bench.relay.endpoint, both=[FRIEND]))
    )
    sending = asyncio.create_task(mesh_bench.send((FRIEND, [b"1"])))
    if code == "approval_expired":
        pending = await asyncio.wait_for(mesh_bench.controller.pending(), WAIT_S)
        assert pending.action == f"mesh:send:{FRIEND}"
        assert mesh_bench.payloads() == [b"0"]
        mesh_bench.controller.decide(pending, grant=False)
        assert (await sending).code == "approval_denied"
    elif code == "rate_limit_exceeded":
        receipt(await sending)
        assert (await mesh_bench.send((FRIEND, [b"2"]))).code == code
    else:
        assert (await sending).code == code
    assert b"2" not in mesh_bench.payloads()


async def test_a_sandbox_without_a_part_in_the_mesh_has_none_of_its_routes(mesh_bench: MeshBench) -> None:
    await mesh_bench.enforce(bundle(version=2))
    assert await asyncio.to_thread(mesh_bench.agent.open) == 403
    for name, message in (
        ("submit", relay_pb2.AttachRequest(connect=relay_pb2.Connect(peer=OWN))),
        ("identity", identity_pb2.IssueStatementRequest(possession_proof=b"x")),
        ("registry/Lookup", registry_pb2.LookupRequest(peer=FRIEND)),
    ):
        answer = await asyncio.to_thread(mesh_bench.agent.post, name, message)
        assert (answer.status, answer.code) == (403, "mesh_not_allowed"), name
    assert mesh_bench.relay.lookups == []
    policy = await asyncio.to_thread(mesh_bench.router.request, "GET", "/mesh/v1/policy")
    assert policy.json == {"requireEdge": True, "edges": []}


async def test_when_the_relay_goes_the_router_comes_back_and_the_agent_connects_again(
    mesh_bench: MeshBench,
) -> None:
    await mesh_bench.attach()
    for _ in range(3):
        mesh_bench.relay.say(gone())
        hello = await mesh_bench.next()
        assert hello is not None
        assert hello.HasField("hello")
        answer = await mesh_bench.send((FRIEND, [b"x"]))
        assert (answer.status, answer.code) == (503, "mesh_not_attached")
        assert (await asyncio.to_thread(mesh_bench.agent.connect)).status == 200
        receipt(await mesh_bench.send((FRIEND, [b"y"])))


async def test_a_receipt_that_was_lost_is_no_success_and_the_same_envelopes_may_come_again(
    mesh_bench: MeshBench,
) -> None:
    await mesh_bench.attach()
    mesh_bench.relay.silent = True
    sending = asyncio.create_task(mesh_bench.send((FRIEND, [b"once"])))
    async with asyncio.timeout(WAIT_S):
        while b"once" not in mesh_bench.payloads():
            await asyncio.sleep(0.01)
    mesh_bench.relay.say(gone())
    answer = await sending
    assert (answer.status, answer.code) == (503, "mesh_not_attached")
    assert "submit the same envelopes again" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ConflictError("peer_replaced", "another took over", {"close_code": "4006"}), "4006"),
        (UnauthenticatedError("identity_superseded", "a newer one was seen", {"close_code": "4005"}), "4005"),
    ],
)
async def test_mesh_03_an_end_for_good_is_passed_on_and_not_tried_again(
    mesh_bench: MeshBench, end: Any, code: str
) -> None:
    await mesh_bench.attach()
    mesh_bench.relay.say(end)
    assert await mesh_bench.next() is None
    status = await asyncio.to_thread(mesh_bench.agent.status)
    assert status["state"] == "detached"
    assert (status["lastEnd"]["reason"], status["lastEnd"]["closeCode"]) == (end.reason, code)
    assert mesh_bench.relay.connected.qsize() == 1


async def test_a_refused_connect_says_the_relays_reason(mesh_bench: MeshBench) -> None:
    mesh_bench.relay.refuse_connect = UnauthenticatedError(
        "connect_proof_invalid", "wrong key", {"close_code": "4005"}
    )
    assert await asyncio.to_thread(mesh_bench.agent.open) == 200
    await mesh_bench.next()
    answer = await asyncio.to_thread(mesh_bench.agent.connect)
    assert (answer.status, answer.code) == (401, "connect_proof_invalid")


async def test_a_newer_reader_takes_over(mesh_bench: MeshBench) -> None:
    await mesh_bench.attach()
    second = MeshAgent(mesh_bench.router)
    await asyncio.to_thread(second.attach)
    assert await mesh_bench.next() is None
    mesh_bench.relay.deliver(FRIEND, b"for the second")
    frame = await asyncio.to_thread(second.next)
    assert frame is not None
    assert frame.deliveries
    await asyncio.to_thread(second.hang_up)


async def test_router_register_37_registry_calls_are_the_doors_own_and_unreadable_ones_are_refused(
    mesh_bench: MeshBench,
) -> None:
    def post(name: str, message: Any) -> Any:
        return mesh_bench.agent.post(name, message)

    known = await asyncio.to_thread(post, "registry/Lookup", registry_pb2.LookupRequest(peer=FRIEND))
    assert registry_pb2.LookupResponse.FromString(known.body).edge_score == 700
    unknown = await asyncio.to_thread(post, "registry/Lookup", registry_pb2.LookupRequest(peer=STRANGER))
    assert (unknown.status, unknown.code) == (404, "peer_not_found")
    actions = {r.get("action") for r in mesh_bench.router.records("call.settled")}
    assert f"mesh:registry:Lookup:{FRIEND}" in actions
    stated = await asyncio.to_thread(
        post, "identity", identity_pb2.IssueStatementRequest(identity_key=b"K", possession_proof=b"p")
    )
    statement = identity_pb2.IssueStatementResponse.FromString(stated.body).statement.statement
    assert statement == OWN.encode() + b" K"
    refused = await asyncio.to_thread(post, "identity", identity_pb2.IssueStatementRequest(identity_key=b"K"))
    assert (refused.status, refused.code) == (401, "possession_proof_invalid")
    assert set(mesh_bench.relay.callers) == {OWN}
    for method in REGISTRY_METHODS:
        odd = await asyncio.to_thread(post, f"registry/{method}", b"\x0a\xff")
        assert (odd.status, odd.code) == (400, "frame_malformed"), method


async def test_the_trust_policy_is_the_signed_one(mesh_bench: MeshBench) -> None:
    answer = await asyncio.to_thread(mesh_bench.router.request, "GET", "/mesh/v1/policy")
    assert answer.json["threshold"] == 500
    assert {"from": FRIEND, "to": OWN, "score": 700} in answer.json["edges"]
    json.dumps(answer.json)


async def test_a_relay_that_is_not_the_relay_gets_no_frame(mesh_bench: MeshBench, tmp_path: Path) -> None:
    impostor = FakeRelay(mesh_bench.controller.authority)  # type: ignore[abstract]  # serves a part
    service: Callable[[str], Any] = mesh_bench.controller.authority.service
    impostor.authority = type("Other", (), {"service": staticmethod(lambda _name: service("egress"))})()
    await impostor.start()
    await mesh_bench.enforce(bundle(version=2, mesh=mesh_access(impostor.endpoint, both=[FRIEND])))
    answer = await asyncio.to_thread(
        mesh_bench.agent.post, "registry/Lookup", registry_pb2.LookupRequest(peer=FRIEND)
    )
    assert answer.status == 503
    assert impostor.lookups == []
    await impostor.stop()


MALFORMED = [
    ("submit", b"\xff\xff\xff", 400, "frame_malformed"),
    ("submit", b"", 400, "frame_empty"),
    ("submit", relay_pb2.AttachRequest(ack_through=3).SerializeToString(), 400, "frame_malformed"),
    (
        "submit",
        relay_pb2.AttachRequest(
            connect=relay_pb2.Connect(peer=OWN), submissions=[relay_pb2.Submission(to=FRIEND)]
        ).SerializeToString(),
        400,
        "frame_malformed",
    ),
    (
        "submit",
        relay_pb2.AttachRequest(
            submissions=[
                relay_pb2.Submission(
                    to="spiffe://kars.local/svc/controller", envelopes=[relay_pb2.Envelope(payload=b"x")]
                )
            ]
        ).SerializeToString(),
        400,
        "recipient_invalid",
    ),
    (
        "ack",
        relay_pb2.AttachRequest(connect=relay_pb2.Connect()).SerializeToString(),
        400,
        "frame_malformed",
    ),
    ("ack", relay_pb2.AttachRequest(ack_through=1).SerializeToString(), 503, "mesh_not_attached"),
    ("identity", b"\x0a\xff", 400, "frame_malformed"),
    ("identity", b"\0" * 5000, 413, "request_too_large"),
    ("registry/Lookup", b"\x0a\xff", 400, "frame_malformed"),
    ("registry/Forward", b"", 404, "route_not_found"),
    ("registry/../identity", b"", 404, "route_not_found"),
]


async def test_mesh_18_malformed_frames_are_refused_and_harm_nothing(mesh_bench: MeshBench) -> None:
    for name, body, status, code in MALFORMED:
        answer = await asyncio.to_thread(mesh_bench.agent.post, name, body)
        assert (answer.status, answer.code) == (status, code), (name, body[:16])
    await mesh_bench.attach()
    receipt(await mesh_bench.send((FRIEND, [b"fine"])))
