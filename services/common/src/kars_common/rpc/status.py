"""How a KarsError crosses gRPC: google.rpc.Status with ErrorInfo and BadRequest, both ways.

One table serves both directions: the classes of `kars_common.errors` and the status each names.
"""

import re
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # ships no stubs
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc_status import rpc_status

from kars_common import errors

ERROR_DOMAIN = "kars.azure.com"

_DETAILS_KEY = "grpc-status-details-bin"
_REASON = re.compile(r"[a-z][a-z0-9_]{0,62}")
_CLASSES: tuple[type[errors.KarsError], ...] = (
    errors.InvalidInputError,
    errors.NotFoundError,
    errors.ConflictError,
    errors.PermissionDeniedError,
    errors.UnauthenticatedError,
    errors.FailedPreconditionError,
    errors.OutOfRangeError,
    errors.ResourceExhaustedError,
    errors.UnavailableError,
    errors.DeadlineExceededError,
    errors.InternalError,
)
_BY_STATUS: dict[grpc.StatusCode, type[errors.KarsError]] = {
    **{cls.grpc_status: cls for cls in _CLASSES},
    grpc.StatusCode.ALREADY_EXISTS: errors.ConflictError,
    grpc.StatusCode.DATA_LOSS: errors.InternalError,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotFoundError,
}


def to_grpc_status(error: errors.KarsError) -> grpc.Status:
    """Return the status, with details, that stands for an error."""
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.grpc_status.name),
        message=errors.clean_text(error.message),
    )
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=ERROR_DOMAIN, metadata=dict(error.metadata)
    )
    status.details.add().Pack(info)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        status.details.add().Pack(bad)
    return rpc_status.to_status(status)


def from_rpc_error(failure: grpc.aio.AioRpcError) -> errors.KarsError:
    """Return the error that a failed call stands for.

    A status without our ErrorInfo (a proxy's, gRPC's own) gets the status name as its reason. Foreign
    text is cleaned and capped; the call's debug string is left behind.
    """
    cls = _BY_STATUS.get(failure.code(), errors.InternalError)
    reason, metadata, violations = failure.code().name.lower(), {}, []
    for detail in _details(failure):
        if isinstance(detail, error_details_pb2.BadRequest):
            violations = [errors.FieldViolation(v.field, v.description) for v in detail.field_violations]
        elif detail.domain == ERROR_DOMAIN and _REASON.fullmatch(detail.reason):
            reason, metadata = detail.reason, dict(detail.metadata)
    message = errors.clean_text(failure.details() or "no details")
    return cls(reason, message, metadata, violations)


def _details(failure: grpc.aio.AioRpcError) -> list[Any]:
    """Return the ErrorInfo and BadRequest messages of a status; what cannot be read is left out."""
    found: list[Any] = []
    for key, value in failure.trailing_metadata() or ():
        if key != _DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
                    message = kind()
                    if detail.Unpack(message):
                        found.append(message)
        except DecodeError:  # a peer that does not speak google.rpc.Status
            continue
    return found
