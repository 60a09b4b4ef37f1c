"""The errors that callers meet, each with its code in all three bindings.

One table (A2A 1.0.1, sections 5.4, 9.5, 10.6, 11.6) and one exception. The bindings write it down in their
own form (`api/`); nothing here knows how. Texts are ours: what an agent says about its insides is never
passed on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import grpc
from kars_common.errors import FieldViolation, KarsError

DOMAIN = "a2a-protocol.org"
_SERVER = -32000


@dataclass(frozen=True, eq=False)
class Codes:
    """How one error is written in each binding. Compared by identity: equal codes do not make one error."""

    jsonrpc: int
    http: int
    grpc: grpc.StatusCode
    standard: bool = True
    """Named by A2A or JSON-RPC: answered with HTTP 200 in the JSON-RPC binding."""


_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT


class Kind(Enum):
    """Every error; the name is the `reason` of its ErrorInfo."""

    TASK_NOT_FOUND = Codes(-32001, 404, grpc.StatusCode.NOT_FOUND)
    TASK_NOT_CANCELABLE = Codes(-32002, 400, _PRECONDITION)
    PUSH_NOTIFICATION_NOT_SUPPORTED = Codes(-32003, 400, _PRECONDITION)
    UNSUPPORTED_OPERATION = Codes(-32004, 400, _PRECONDITION)
    CONTENT_TYPE_NOT_SUPPORTED = Codes(-32005, 400, _ARGUMENT)
    INVALID_AGENT_RESPONSE = Codes(-32006, 500, grpc.StatusCode.INTERNAL)
    EXTENDED_AGENT_CARD_NOT_CONFIGURED = Codes(-32007, 400, _PRECONDITION)
    EXTENSION_SUPPORT_REQUIRED = Codes(-32008, 400, _PRECONDITION)
    VERSION_NOT_SUPPORTED = Codes(-32009, 400, _PRECONDITION)
    JSON_PARSE_ERROR = Codes(-32700, 400, _ARGUMENT)
    INVALID_REQUEST = Codes(-32600, 400, _ARGUMENT)
    METHOD_NOT_FOUND = Codes(-32601, 404, grpc.StatusCode.NOT_FOUND)
    INVALID_PARAMS = Codes(-32602, 400, _ARGUMENT)
    INTERNAL_ERROR = Codes(-32603, 500, grpc.StatusCode.INTERNAL)
    AP2_DENIED = Codes(-32011, 403, grpc.StatusCode.PERMISSION_DENIED)
    """A payment mandate is refused; a code of ours, `metadata.kind` says why."""
    # What A2A gives no code: HTTP says it, in the JSON-RPC binding too.
    UNAUTHENTICATED = Codes(_SERVER, 401, grpc.StatusCode.UNAUTHENTICATED, standard=False)
    PERMISSION_DENIED = Codes(_SERVER, 403, grpc.StatusCode.PERMISSION_DENIED, standard=False)
    AGENT_NOT_FOUND = Codes(_SERVER, 404, grpc.StatusCode.NOT_FOUND, standard=False)
    METHOD_NOT_ALLOWED = Codes(_SERVER, 405, grpc.StatusCode.UNIMPLEMENTED, standard=False)
    PAYLOAD_TOO_LARGE = Codes(_SERVER, 413, grpc.StatusCode.RESOURCE_EXHAUSTED, standard=False)
    RATE_LIMITED = Codes(_SERVER, 429, grpc.StatusCode.RESOURCE_EXHAUSTED, standard=False)
    QUOTA_EXCEEDED = Codes(-32000, 429, grpc.StatusCode.RESOURCE_EXHAUSTED, False)  # noqa: FBT003
    UNAVAILABLE = Codes(_SERVER, 503, grpc.StatusCode.UNAVAILABLE, standard=False)
    DEADLINE_EXCEEDED = Codes(_SERVER, 504, grpc.StatusCode.DEADLINE_EXCEEDED, standard=False)

    @property
    def reason(self) -> str:
        """The ErrorInfo reason."""
        return self.name


@dataclass
class A2AError(Exception):
    """A request is refused, or failed."""

    kind: Kind
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[FieldViolation] = ()
    headers: Sequence[tuple[str, str]] = ()
    """Response headers that belong to it: a challenge, Retry-After."""

    def __str__(self) -> str:
        return f"{self.message} ({self.kind.reason})"


def invalid(message: str, field_name: str = "") -> A2AError:
    """Return INVALID_PARAMS, naming the field."""
    violations = (FieldViolation(field_name, message),) if field_name else ()
    return A2AError(Kind.INVALID_PARAMS, message, violations=violations)


def task_not_found() -> A2AError:
    """Return the one answer to a task that is absent, and to one that is somebody else's."""
    return A2AError(Kind.TASK_NOT_FOUND, "task not found")


def unavailable(message: str, retry_after_s: int = 1) -> A2AError:
    """Return UNAVAILABLE with a hint when to come back."""
    return A2AError(Kind.UNAVAILABLE, message, headers=(("retry-after", str(retry_after_s)),))


# What a router answers, by the reason of its ErrorInfo (kars.a2a.v1.AgentDelivery). Its texts stay inside.
_FROM_AGENT = {
    "a2a_task_not_found": (Kind.TASK_NOT_FOUND, "task not found"),
    "a2a_task_not_cancelable": (Kind.TASK_NOT_CANCELABLE, "the task cannot be canceled"),
    "a2a_unsupported_operation": (Kind.UNSUPPORTED_OPERATION, "the agent does not support this"),
    "a2a_content_type_not_supported": (Kind.CONTENT_TYPE_NOT_SUPPORTED, "the agent refuses this media type"),
    "a2a_invalid_agent_response": (Kind.INVALID_AGENT_RESPONSE, "the agent's answer is not valid A2A"),
    "a2a_extended_agent_card_not_configured": (
        Kind.EXTENDED_AGENT_CARD_NOT_CONFIGURED,
        "the agent has no extended card",
    ),
    "a2a_extension_support_required": (Kind.EXTENSION_SUPPORT_REQUIRED, "the agent requires an extension"),
    "a2a_version_not_supported": (Kind.INVALID_AGENT_RESPONSE, "the agent does not speak A2A 1.0"),
    "a2a_invalid_params": (Kind.INVALID_PARAMS, "the agent refuses the parameters"),
    "a2a_invalid_request": (Kind.INVALID_PARAMS, "the agent refuses the request"),
    "policy_denied": (Kind.PERMISSION_DENIED, "policy refuses this call"),
    "budget_exceeded": (Kind.QUOTA_EXCEEDED, "the agent's budget is used up"),
}


def from_agent(error: KarsError) -> A2AError:
    """Return what a caller is told about an error of the way inside."""
    known = _FROM_AGENT.get(error.reason)
    if known is not None:
        return A2AError(known[0], known[1])
    if error.grpc_status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return A2AError(Kind.DEADLINE_EXCEEDED, "the agent did not answer in time")
    if error.grpc_status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return unavailable("the agent cannot be reached now")
    return A2AError(Kind.INTERNAL_ERROR, "the agent failed to answer")
