"""The gRPC faces, in process behind a real channel."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.audit.v1 import audit_pb2, audit_pb2_grpc
from kars_common.audit import (
    AuditLog,
    AuditLogServicer,
    AuditWitnessServicer,
    MemoryWitnessStore,
    Witness,
    WitnessedLog,
    open_checkpoint,
    submit_over,
)
from kars_common.audit import merkle as tree
from kars_common.errors import InvalidInputError, NotFoundError, OutOfRangeError

ORIGIN = "kars.local/ns/team-a/sandbox/quickstart"
OpenLog = Callable[..., AuditLog]


@pytest.fixture
async def log(open_log: OpenLog) -> AsyncIterator[AuditLog]:
    log = open_log(max_segment_bytes=5000)
    for i in range(250):
        log.append("a", {"n": i})
    await log.durable(249)
    yield log
    await log.close()


@pytest.fixture
def witness() -> Witness:
    return Witness("kars.local/witness", Ed25519PrivateKey.generate(), MemoryWitnessStore())


@pytest.fixture
async def channel(log: AuditLog, witness: Witness) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    audit_pb2_grpc.add_AuditLogServicer_to_server(AuditLogServicer(log), server)
    audit_pb2_grpc.add_AuditWitnessServicer_to_server(AuditWitnessServicer(witness, lambda _: ORIGIN), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def test_pages_cover_every_record_once(channel: grpc.aio.Channel, log: AuditLog) -> None:
    stub: Any = audit_pb2_grpc.AuditLogStub(channel)
    seen: list[bytes] = []
    start = 0
    while True:
        page = await stub.ListRecords(audit_pb2.ListRecordsRequest(start_seq=start, page_size=60))
        seen += page.records
        if not page.next_seq:
            break
        start = page.next_seq
    assert seen == list(log.lines())


async def test_record_that_is_not_durable_is_not_shown(log: AuditLog) -> None:
    log.append("a", {"not": "yet"})
    page = await AuditLogServicer(log).ListRecords(audit_pb2.ListRecordsRequest(start_seq=249), None)
    assert (len(page.records), page.next_seq) == (1, 0)


@pytest.mark.parametrize("size", [-1, 1001])
async def test_page_size_out_of_range_is_refused(log: AuditLog, size: int) -> None:
    with pytest.raises(InvalidInputError):
        await AuditLogServicer(log).ListRecords(audit_pb2.ListRecordsRequest(page_size=size), None)


async def test_tail_gives_the_last_ones_then_follows(channel: grpc.aio.Channel, log: AuditLog) -> None:
    stub: Any = audit_pb2_grpc.AuditLogStub(channel)
    call = stub.TailRecords(audit_pb2.TailRecordsRequest(start_seq=-3, follow=True))
    assert list((await call.read()).records) == list(log.lines(247))
    log.append("a", {"new": True})
    await log.durable(250)
    response = await asyncio.wait_for(call.read(), 5)
    assert list(response.records) == list(log.lines(250))
    call.cancel()
    short = [r async for r in stub.TailRecords(audit_pb2.TailRecordsRequest(start_seq=-9999))]
    assert sum(len(r.records) for r in short) == 251


async def test_proofs_over_the_wire_convince_a_stranger(
    channel: grpc.aio.Channel, log: AuditLog, key: Ed25519PrivateKey
) -> None:
    stub: Any = audit_pb2_grpc.AuditLogStub(channel)
    head = open_checkpoint(
        (await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest())).signed_note, key.public_key(), ORIGIN
    )
    proof = await stub.GetInclusionProof(audit_pb2.GetInclusionProofRequest(seq=123))
    assert open_checkpoint(proof.signed_note, key.public_key()) == head
    assert tree.verify_inclusion(tree.leaf_hash(proof.record), 123, head.size, list(proof.hashes), head.root)
    grown = await stub.GetConsistencyProof(audit_pb2.GetConsistencyProofRequest(old_size=100))
    assert tree.verify_consistency(100, log.root_at(100), head.size, head.root, list(grown.hashes))


async def test_proof_beyond_the_log_is_out_of_range(log: AuditLog) -> None:
    with pytest.raises(OutOfRangeError) as caught:
        await AuditLogServicer(log).GetInclusionProof(audit_pb2.GetInclusionProofRequest(seq=250), None)
    assert caught.value.reason == "audit_seq_out_of_range"
    with pytest.raises(OutOfRangeError) as caught:
        await AuditLogServicer(log).GetConsistencyProof(
            audit_pb2.GetConsistencyProofRequest(old_size=999), None
        )
    assert caught.value.reason == "audit_size_out_of_range"


async def test_log_is_witnessed_over_the_wire(
    channel: grpc.aio.Channel, log: AuditLog, witness: Witness
) -> None:
    stub: Any = audit_pb2_grpc.AuditWitnessStub(channel)
    client = WitnessedLog(log, submit_over(stub.WitnessCheckpoint), witness.name, witness.public_key)
    assert await client.witness_once() == 250
    answer = await stub.GetWitnessed(audit_pb2.GetWitnessedRequest(origin=ORIGIN))
    assert open_checkpoint(answer.signed_note, log.public_key, ORIGIN).size == 250


async def test_unknown_origin_is_not_found(witness: Witness) -> None:
    servicer = AuditWitnessServicer(witness, lambda _: ORIGIN)
    with pytest.raises(NotFoundError):
        await servicer.GetWitnessed(audit_pb2.GetWitnessedRequest(origin="kars.local/x"), None)
