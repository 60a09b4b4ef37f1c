"""Frames as bytes: the scanner agrees with protobuf, and nothing that it passes can hurt a recipient."""

import contextlib
import os
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from kars.mesh.v1 import relay_pb2
from kars_relay.frames import Frame, FrameError, Run, cut, delivery, scan, scan_submission
from kars_relay_testkit.house import House, mailboxes, reason, registered, texts

ENVELOPES = st.builds(
    relay_pb2.Envelope,
    id=st.binary(min_size=16, max_size=16),
    payload=st.one_of(st.binary(min_size=1, max_size=300), st.just(b"x" * 20_000)),
)
SUBMISSIONS = st.builds(
    relay_pb2.Submission,
    to=st.text("abc/:.", min_size=1, max_size=200),
    envelopes=st.lists(ENVELOPES, min_size=1, max_size=8),
    ttl_s=st.integers(0, 2**31 - 1),
)
REQUESTS = st.builds(
    relay_pb2.AttachRequest,
    submissions=st.lists(SUBMISSIONS, max_size=4),
    ack_through=st.integers(0, 2**63 - 1),
    window=st.one_of(st.none(), st.builds(relay_pb2.Window, max_envelopes=st.integers(0, 9))),
)


def rebuilt(run: Run) -> relay_pb2.Submission:
    submission = relay_pb2.Submission.FromString(run.body)
    submission.to, submission.ttl_s = run.to.decode(), run.ttl_s
    return submission


@given(REQUESTS)
def test_the_scanner_reads_what_protobuf_wrote(request: relay_pb2.AttachRequest) -> None:
    frame = scan(request.SerializeToString())

    assert [rebuilt(run) for run in frame.runs] == list(request.submissions)
    assert frame.ack_through == request.ack_through
    for run, submission in zip(frame.runs, request.submissions, strict=True):
        assert run.ids == [envelope.id for envelope in submission.envelopes]
        assert run.ends == cut(run.body)
        assert run.largest == max(len(envelope.payload) for envelope in submission.envelopes)


def scanned(raw: bytes) -> Frame | None:
    """Return what the scanner reads, or None where it refuses as it promises."""
    try:
        return scan(raw)
    except FrameError:
        return None


@settings(max_examples=400)
@given(REQUESTS, st.data())
def test_whatever_the_scanner_passes_every_decoder_reads(
    request: relay_pb2.AttachRequest, data: st.DataObject
) -> None:
    raw = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if not raw:
            break
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(("flip", "cut", "insert"))):
            case "flip":
                raw[place] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[place:]
            case _:
                raw[place:place] = data.draw(st.binary(max_size=4))
    frame = scanned(bytes(raw))
    if frame is None:
        return
    for run in frame.runs:
        assert len(run.ids) == len(run.ends) >= 1
        sent = delivery(b"spiffe://x/y", run.body, 1, 2)
        response = relay_pb2.AttachResponse.FromString(sent)
        assert [envelope.id for envelope in response.deliveries[0].envelopes] == run.ids
        assert all(envelope.payload for envelope in response.deliveries[0].envelopes)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_read_and_never_crash(raw: bytes) -> None:
    scanned(raw)
    with contextlib.suppress(FrameError):
        scan_submission(raw)


@given(st.binary(max_size=40), ENVELOPES, st.integers(1, 2**62), st.integers(0, 2**50))
def test_a_delivery_is_what_protobuf_would_have_written(
    sender: bytes, envelope: relay_pb2.Envelope, seq: int, at_ms: int
) -> None:
    name = sender.hex()
    expected = relay_pb2.AttachResponse(
        deliveries=[relay_pb2.Delivery(sender=name, envelopes=[envelope], first_seq=seq, stored_at_ms=at_ms)]
    )
    body = relay_pb2.Submission(envelopes=[envelope]).SerializeToString()
    assert relay_pb2.AttachResponse.FromString(delivery(name.encode(), body, seq, at_ms)) == expected


def poisons() -> list[bytes]:
    """Frames whose envelopes the scanner must not store: a decoder would choke, or see another id."""
    good_id = b"\x0a\x10" + b"i" * 16
    payload = b"\x12\x02ok"
    envelopes = [
        good_id + payload + b"\xff\xff",  # rubbish after the payload
        good_id + b"\x12\x7fok",  # a payload that reaches beyond
        good_id,  # no payload
        payload,  # no id
        payload + good_id,  # the other order
        good_id + good_id + payload,  # two ids
        b"\x0a\x08" + b"i" * 8 + payload,  # a short id
        good_id + b"\x12\x00",  # an empty payload
        good_id + payload + payload,  # two payloads
        good_id + payload + b"\x1a\x01x",  # an unknown field
    ]
    to = b"spiffe://kars.local/ns/team/sandbox/poisoned"
    frames = []
    for envelope in envelopes:
        submission = b"\x0a" + bytes([len(to)]) + to + b"\x12" + bytes([len(envelope)]) + envelope
        frames.append(b"\x0a" + bytes([len(submission)]) + submission)
    return frames


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("frame", poisons())
async def test_mesh_18_a_poisoned_envelope_reaches_no_mailbox_and_is_counted(
    house: House, frame: bytes
) -> None:
    alice, poisoned = await registered(house, "alice", "poisoned")
    before = (await mailboxes(house))[str(poisoned)].stored_envelopes
    async with house.stream(alice) as stream:
        raw: Any = stream.channel.stream_stream("/kars.mesh.v1.Relay/Attach")()
        stream.hello = relay_pb2.AttachResponse.FromString(await raw.read()).hello
        await raw.write(relay_pb2.AttachRequest(connect=stream.make_connect()).SerializeToString())
        await raw.read()
        await raw.write(frame)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await read_to_the_end(raw)
    assert reason(failure.value)[0] == "frame_malformed"
    assert (await mailboxes(house))[str(poisoned)].stored_envelopes == before
    async with house.stream(alice) as sender, house.stream(poisoned) as receiver:
        await sender.send(poisoned, [b"healthy"])
        assert texts(await receiver.receive(1)) == [b"healthy"]
        await receiver.ack()


async def test_a_frame_above_4_mib_ends_the_stream_and_not_the_relay(house: House) -> None:
    alice, bob = await registered(house, "alice", "bob")
    async with house.stream(alice) as sender:
        await sender.submit(bob, [os.urandom(1_000_000)] * 4 + [os.urandom(300_000)])
        assert reason(await sender.ended())[0] == "frame_too_large"
    async with house.stream(alice) as sender:
        assert not await sender.send(bob, [b"still here"])


def test_a_decoder_refuses_what_the_poison_would_have_been() -> None:
    with pytest.raises(DecodeError):
        relay_pb2.AttachResponse.FromString(
            delivery(b"x", b"\x12\x16\x0a\x10" + b"i" * 16 + b"\x12\x7fok", 1, 1)
        )
