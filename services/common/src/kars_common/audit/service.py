"""The gRPC faces of a log and of a witness. Decode, call, encode; who may call is the server's table.

Only durable records leave through here: a reader must never see what a power cut could take back.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from kars.audit.v1 import audit_pb2, audit_pb2_grpc

from kars_common.audit import notes
from kars_common.audit.log import AuditLog
from kars_common.audit.witness import Submission, Submit, Witness
from kars_common.errors import InvalidInputError, NotFoundError, OutOfRangeError
from kars_common.rpc import caller

_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_MAX_BATCH_BYTES = 1024 * 1024

Context = Any
"""grpc.aio.ServicerContext; it is generic over types that no one here looks at."""


class AuditLogServicer(audit_pb2_grpc.AuditLogServicer):
    """Serves one log."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    async def ListRecords(  # noqa: N802 - named by the contract
        self, request: audit_pb2.ListRecordsRequest, _context: Context
    ) -> audit_pb2.ListRecordsResponse:
        """Return one page of durable records."""
        page = request.page_size or _DEFAULT_PAGE
        if not 1 <= page <= _MAX_PAGE:
            raise InvalidInputError("page_size_invalid", f"page_size is 1 to {_MAX_PAGE}, got {page}")
        end = self._log.durable_size
        start = max(request.start_seq, self._log.first_seq)
        if start >= end:
            return audit_pb2.ListRecordsResponse()
        records = next(_batches(self._log.lines(start, min(end, start + page))), [])
        after = start + len(records)
        return audit_pb2.ListRecordsResponse(records=records, next_seq=after if after < end else 0)

    async def TailRecords(  # noqa: N802 - named by the contract
        self, request: audit_pb2.TailRecordsRequest, _context: Context
    ) -> AsyncIterator[audit_pb2.TailRecordsResponse]:
        """Stream durable records, then new ones as they become durable."""
        end = self._log.durable_size
        start = end + request.start_seq if request.start_seq < 0 else request.start_seq
        position = max(start, self._log.first_seq)
        while True:
            end = self._log.durable_size
            if position < end:
                for records in _batches(self._log.lines(position, end)):
                    yield audit_pb2.TailRecordsResponse(records=records)
                    position += len(records)
            if not request.follow:
                return
            await self._log.wait_durable_beyond(max(position, end))

    async def GetCheckpoint(  # noqa: N802 - named by the contract
        self, _request: audit_pb2.GetCheckpointRequest, _context: Context
    ) -> audit_pb2.GetCheckpointResponse:
        """Return the signed head over the durable records."""
        return audit_pb2.GetCheckpointResponse(signed_note=self._log.checkpoint())

    async def GetInclusionProof(  # noqa: N802 - named by the contract
        self, request: audit_pb2.GetInclusionProofRequest, _context: Context
    ) -> audit_pb2.GetInclusionProofResponse:
        """Return a record with the proof that it is in the tree."""
        note, durable = self._log.checkpoint(), self._log.durable_size
        size = request.tree_size or durable
        hashes = self._log.inclusion_proof(request.seq, size)
        record = next(self._log.lines(request.seq, request.seq + 1), None)
        if record is None:
            raise OutOfRangeError("audit_seq_out_of_range", f"record {request.seq} cannot be read")
        return audit_pb2.GetInclusionProofResponse(
            record=record, tree_size=size, hashes=hashes, signed_note=note if size == durable else b""
        )

    async def GetConsistencyProof(  # noqa: N802 - named by the contract
        self, request: audit_pb2.GetConsistencyProofRequest, _context: Context
    ) -> audit_pb2.GetConsistencyProofResponse:
        """Return the proof that the tree only grew."""
        note, durable = self._log.checkpoint(), self._log.durable_size
        size = request.new_size or durable
        hashes = self._log.consistency_proof(request.old_size, size)
        return audit_pb2.GetConsistencyProofResponse(
            new_size=size, hashes=hashes, signed_note=note if size == durable else b""
        )


class AuditWitnessServicer(audit_pb2_grpc.AuditWitnessServicer):
    """Serves a witness."""

    def __init__(
        self,
        witness: Witness,
        origin_of_caller: Callable[[Context], str] = lambda context: str(caller(context)),
    ) -> None:
        """Create one.

        Args:
            witness: Decides and signs.
            origin_of_caller: Returns the only origin that the caller may speak for; by default the SPIFFE id
                that the connection proved.
        """
        self._witness = witness
        self._origin_of_caller = origin_of_caller

    async def WitnessCheckpoint(  # noqa: N802 - named by the contract
        self, request: audit_pb2.WitnessCheckpointRequest, context: Context
    ) -> audit_pb2.WitnessCheckpointResponse:
        """Cosign the caller's head."""
        line = self._witness.cosign(
            self._origin_of_caller(context),
            request.old_size,
            list(request.hashes),
            request.signed_note,
            request.log_public_key,
        )
        return audit_pb2.WitnessCheckpointResponse(cosignature=line)

    async def GetWitnessed(  # noqa: N802 - named by the contract
        self, request: audit_pb2.GetWitnessedRequest, _context: Context
    ) -> audit_pb2.GetWitnessedResponse:
        """Return the last cosigned head of an origin."""
        head = self._witness.witnessed(notes.check_name(request.origin))
        if head is None:
            raise NotFoundError("audit_origin_unknown", f"no head of {request.origin[:200]!r} was witnessed")
        return audit_pb2.GetWitnessedResponse(signed_note=head.signed_note)


def submit_over(
    call: Callable[[audit_pb2.WitnessCheckpointRequest], Awaitable[audit_pb2.WitnessCheckpointResponse]],
) -> Submit:
    """Return the `Submit` of a `WitnessedLog` that goes over the wire.

    Args:
        call: Makes the WitnessCheckpoint call with a deadline and raises KarsError for its errors.
    """

    async def submit(submission: Submission) -> bytes:
        response = await call(
            audit_pb2.WitnessCheckpointRequest(
                old_size=submission.old_size,
                hashes=submission.proof,
                signed_note=submission.signed_note,
                log_public_key=submission.log_public_key,
            )
        )
        return response.cosignature

    return submit


def _batches(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Group lines so that a message stays well below gRPC's limit."""
    for first in lines:
        batch, size = [first], len(first)
        for line in itertools.islice(lines, _MAX_PAGE - 1):
            batch.append(line)
            size += len(line)
            if size >= _MAX_BATCH_BYTES:
                break
        yield batch
