"""The parts of the mesh bridge without a network: frames, numbering, acknowledgements, edges."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars.mesh.v1 import relay_pb2
from kars_common.errors import UnavailableError
from kars_router.governance.engine import PolicyCompileError
from kars_router.mesh import frames
from kars_router.mesh.access import MeshAccess
from kars_router.mesh.frames import FrameError
from kars_router.mesh.inbox import Acknowledgements, Inbox
from kars_router.mesh.inflight import InFlight
from kars_router_testkit.policies import bundle, mesh_access

OWN = "spiffe://kars.local/ns/team/sandbox/agent"
FRIEND = "spiffe://kars.local/ns/team/sandbox/friend"


@given(st.binary(max_size=400))
def test_any_bytes_are_a_frame_or_a_refusal(body: bytes) -> None:
    with contextlib.suppress(FrameError):
        frame = frames.parse(body)
        if not frames.is_connect(frame):
            for item in frames.outgoing(frame):
                assert item.numbers


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.binary(min_size=1, max_size=9), min_size=1)), min_size=1
    )
)
def test_no_envelope_is_lost_doubled_or_moved_by_grouping_and_cutting(
    runs: list[tuple[int, list[bytes]]],
) -> None:
    frame = relay_pb2.AttachRequest(
        submissions=[
            relay_pb2.Submission(
                to=f"{FRIEND}{to}", envelopes=[relay_pb2.Envelope(payload=item) for item in payloads]
            )
            for to, payloads in runs
        ]
    )
    flat = [(f"{FRIEND}{to}", item) for to, payloads in runs for item in payloads]
    found: dict[int, tuple[str, bytes]] = {}
    for item in frames.outgoing(frame):
        sent = [e.payload for chunk in frames.chunks(item.submissions) for e in chunk.envelopes]
        assert len(sent) == len(item.numbers)
        found |= {
            number: (item.recipient, payload) for number, payload in zip(item.numbers, sent, strict=True)
        }
        assert list(item.numbers) == sorted(item.numbers)
    assert [found[number + 1] for number in range(len(flat))] == flat


def test_a_cut_is_never_larger_than_one_turn_of_the_stream() -> None:
    big = [relay_pb2.Envelope(payload=bytes(100_000)) for _ in range(9)]
    cut = list(frames.chunks([relay_pb2.Submission(to=FRIEND, ttl_s=7, envelopes=big)]))
    assert [len(chunk.envelopes) for chunk in cut] == [2, 2, 2, 2, 1]
    assert {chunk.ttl_s for chunk in cut} == {7}


@pytest.mark.parametrize("count", [frames.MAX_ENVELOPES + 1])
def test_too_many_envelopes_are_refused_as_a_whole(count: int) -> None:
    run = relay_pb2.Submission(to=FRIEND, envelopes=[relay_pb2.Envelope(payload=b"x")] * count)
    with pytest.raises(FrameError) as refusal:
        frames.outgoing(relay_pb2.AttachRequest(submissions=[run]))
    assert refusal.value.code == "too_many_envelopes"


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    first=st.integers(1, 30),
    count=st.integers(1, 12),
)
async def test_a_refusal_over_several_runs_falls_to_each_for_its_part(
    sizes: list[int], first: int, count: int
) -> None:
    in_flight = InFlight(1000, 1000)
    runs = [in_flight.add(size, 1) for size in sizes]
    total = sum(sizes)
    receipt = relay_pb2.Receipt(
        decided_through=total,
        refusals=[relay_pb2.Refusal(number=first, count=count, reason=relay_pb2.REFUSAL_REASON_NO_POLICY)],
    )
    if first + count - 1 > total:
        assert not in_flight.take(receipt)  # it speaks of what was never submitted
        in_flight.fail()
        return
    assert in_flight.take(receipt)
    refused = {
        run.first + place + offset
        for run in runs
        for place, cut in run.refusals
        for offset in range(cut.count)
    }
    assert refused == set(range(first, first + count))
    assert all(run.decided.done() for run in runs)


async def test_a_receipt_for_the_future_is_no_receipt() -> None:
    in_flight = InFlight(10, 10)
    run = in_flight.add(1, 1)
    assert not in_flight.take(relay_pb2.Receipt(decided_through=2))
    assert not run.decided.done()
    in_flight.fail()
    with pytest.raises(UnavailableError):
        await run.decided


async def test_the_window_holds_back_and_lets_go() -> None:
    in_flight = InFlight(2, 100)
    in_flight.add(2, 2)
    waiting = asyncio.create_task(in_flight.wait_room(1, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    in_flight.take(relay_pb2.Receipt(decided_through=2))
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(in_flight.wait_room(50, 5000), 5)  # larger than the window, but alone


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=20),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_the_relay_forgets_only_what_was_acknowledged_or_dropped_and_in_order(
    deliveries: list[tuple[int, bool]], acks: list[int]
) -> None:
    state, last = Acknowledgements(), 0
    ends: list[tuple[int, bool]] = []
    for size, dropped in deliveries:
        last += size
        ends.append((last, dropped))
        state.delivered(last, dropped=dropped)
    highest = 0
    for ack in acks:
        highest = max(highest, ack)
        through = state.acknowledge(ack)
        if through:
            assert all(dropped or end <= highest for end, dropped in ends if end <= through)


async def test_a_full_inbox_holds_the_relay_back_and_a_closed_one_lets_it_go() -> None:
    inbox = Inbox(max_bytes=10)
    await inbox.put(b"12345678")
    waiting = asyncio.create_task(inbox.put(b"9abcdef"))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await inbox.get() == b"12345678"
    await asyncio.wait_for(waiting, 5)
    inbox.close()
    assert await inbox.get() == b"9abcdef"
    assert await inbox.get() is None
    await asyncio.wait_for(inbox.put(b"x" * 99), 5)


def access(**changes: object) -> MeshAccess:
    document = {**mesh_access("r:1", both=[FRIEND]), **changes}
    found = MeshAccess.compile(bundle(mesh=document))
    assert found is not None
    return found


def test_a_star_stands_for_one_segment_and_never_for_oneself() -> None:
    wild = access(edges=[{"sender": "spiffe://kars.local/ns/*/sandbox/*", "recipient": OWN, "score": 1}])
    assert wild.may_receive("spiffe://kars.local/ns/x/sandbox/y")
    assert not wild.may_receive("spiffe://other.local/ns/x/sandbox/y")
    assert not wild.may_receive(OWN)
    assert not wild.may_send(FRIEND)


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": FRIEND},
        {"peer": ""},
        {"trustThreshold": 1001},
        {"edges": [{"sender": "x", "recipient": OWN}]},
        {"edges": [{"sender": OWN, "recipient": FRIEND, "score": 1001}]},
    ],
)
def test_a_part_that_is_wrong_refuses_the_whole_bundle(changes: dict[str, object]) -> None:
    with pytest.raises(PolicyCompileError):
        access(**changes)


def test_a_relays_rules_have_no_business_in_a_sandbox() -> None:
    document = bundle()
    document.mesh.default_quota.SetInParent()
    with pytest.raises(PolicyCompileError):
        MeshAccess.compile(document)
