"""The errors that kars raises on purpose, grouped by what the caller should do.

Each carries a stable `reason` for programs, one sentence for people, optional metadata, and the
gRPC status that stands for its class. How an error crosses the wire is `kars_common.rpc.status`'s
business; nothing here opens a socket.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import grpc

_REASON = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MAX_MESSAGE_CHARS = 1024


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of an input: where it is, and what is wrong with it."""

    field: str
    description: str


class KarsError(Exception):
    """Root of every error that kars raises on purpose."""

    grpc_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
    ) -> None:
        if not _REASON.fullmatch(reason):
            raise ValueError(f"reason must be lower_snake_case of at most 63 characters, got {reason!r}")
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.violations: tuple[FieldViolation, ...] = tuple(violations)

    def __str__(self) -> str:
        return f"{self.message} ({self.reason})"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reason={self.reason!r}, message={self.message!r})"


class InvalidInputError(KarsError):
    """The request can never succeed as it is: fix it."""

    grpc_status = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(KarsError):
    """The thing that the request names does not exist."""

    grpc_status = grpc.StatusCode.NOT_FOUND


class ConflictError(KarsError):
    """The thing exists already, or changed meanwhile: read it again, then decide."""

    grpc_status = grpc.StatusCode.ABORTED


class PermissionDeniedError(KarsError):
    """The caller is known and may not do this: give up."""

    grpc_status = grpc.StatusCode.PERMISSION_DENIED


class UnauthenticatedError(KarsError):
    """The caller did not prove who it is."""

    grpc_status = grpc.StatusCode.UNAUTHENTICATED


class FailedPreconditionError(KarsError):
    """The system is in the wrong state for this: change the state first, do not just retry."""

    grpc_status = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRangeError(KarsError):
    """The request reaches past what exists, such as a record that is not written yet."""

    grpc_status = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhaustedError(KarsError):
    """A quota, a budget or a bound is used up: wait for it, or ask for less."""

    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(KarsError):
    """The other side is not there now: retry with back-off."""

    grpc_status = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(UnavailableError):
    """The answer did not come in time; whether the call took effect is unknown."""

    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED


class InternalError(KarsError):
    """The other side broke; its inner text stays with it."""

    grpc_status = grpc.StatusCode.INTERNAL


def clean_text(foreign: str, limit: int = _MAX_MESSAGE_CHARS) -> str:
    """Return foreign text fit for a message: one line, printable, at most `limit` characters."""
    printable = "".join(c if c.isprintable() else " " for c in foreign[: limit * 2])
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
