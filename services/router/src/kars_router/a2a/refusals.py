"""What the agent's server answers, as errors with reasons; its texts stay on this side.

An agent's error text may hold anything, stack traces and secrets included. Its kind is enough for whoever
called.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import httpx
from a2a.client.errors import A2AClientTimeoutError
from a2a.utils import errors as a2a_errors
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from kars_common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidInputError,
    KarsError,
    NotFoundError,
    UnavailableError,
)

_CLASSES: dict[type[a2a_errors.A2AError], type[KarsError]] = {
    a2a_errors.TaskNotFoundError: NotFoundError,
    a2a_errors.TaskNotCancelableError: FailedPreconditionError,
    a2a_errors.PushNotificationNotSupportedError: FailedPreconditionError,
    a2a_errors.UnsupportedOperationError: FailedPreconditionError,
    a2a_errors.ContentTypeNotSupportedError: InvalidInputError,
    a2a_errors.InvalidAgentResponseError: InternalError,
    a2a_errors.ExtendedAgentCardNotConfiguredError: FailedPreconditionError,
    a2a_errors.ExtensionSupportRequiredError: FailedPreconditionError,
    a2a_errors.VersionNotSupportedError: FailedPreconditionError,
    a2a_errors.InvalidParamsError: InvalidInputError,
    a2a_errors.InvalidRequestError: InvalidInputError,
    a2a_errors.MethodNotFoundError: FailedPreconditionError,
}


@contextmanager
def mapped() -> Iterator[None]:
    """Raise the KarsError that stands for what the agent's server did."""
    try:
        yield
    except KarsError:
        raise
    except A2AClientTimeoutError as exc:
        raise DeadlineExceededError("agent_timeout", "the agent did not answer in time") from exc
    except a2a_errors.A2AError as exc:
        raise _refusal(exc) from exc
    except TimeoutError as exc:
        raise DeadlineExceededError("agent_timeout", "the agent did not answer in time") from exc
    except (httpx.HTTPError, grpc.aio.AioRpcError, OSError) as exc:
        raise UnavailableError("agent_unreachable", "the connection to the agent broke") from exc
    except (ValueError, TypeError, KeyError, DecodeError, json_format.ParseError, RecursionError) as exc:
        raise InternalError("a2a_invalid_agent_response", "the agent's answer is not valid A2A") from exc


def _refusal(error: a2a_errors.A2AError) -> KarsError:
    for kind, cls in _CLASSES.items():
        if isinstance(error, kind):
            reason = "a2a_" + a2a_errors.A2A_ERROR_REASONS[kind].lower()
            if kind is a2a_errors.MethodNotFoundError:
                reason = "a2a_unsupported_operation"
            return cls(reason, f"the agent answered {reason}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx.TransportError):
            return UnavailableError("agent_unreachable", "the connection to the agent broke")
        cause = cause.__cause__ or cause.__context__
    return InternalError("agent_failed", "the agent failed to answer")
