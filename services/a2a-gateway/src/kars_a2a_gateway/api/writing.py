"""Messages and errors as JSON, in the form of each HTTP binding."""

from typing import Any

import orjson
from a2a.types import ListTaskPushNotificationConfigsResponse, ListTasksResponse
from google.protobuf import json_format
from google.protobuf.message import Message

from kars_a2a_gateway.errors import DOMAIN, A2AError

A2A_JSON = "application/a2a+json"
JSON = "application/json"
_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"


def document(message: Message) -> dict[str, Any]:
    """Return a message as JSON values; members of a list answer are there even when they are empty."""
    written: dict[str, Any] = json_format.MessageToDict(message)
    if isinstance(message, ListTasksResponse):
        written.setdefault("tasks", [])
        written.setdefault("nextPageToken", "")
        written.setdefault("pageSize", message.page_size)
        written.setdefault("totalSize", message.total_size)
    elif isinstance(message, ListTaskPushNotificationConfigsResponse):
        written.setdefault("configs", [])
    return written


def details(error: A2AError) -> list[dict[str, Any]]:
    """Return the google.rpc details of an error."""
    found: list[dict[str, Any]] = [
        {"@type": _INFO, "reason": error.kind.reason, "domain": DOMAIN, "metadata": dict(error.metadata)}
    ]
    if error.violations:
        violations = [{"field": v.field, "description": v.description} for v in error.violations]
        found.append({"@type": _BAD_REQUEST, "fieldViolations": violations})
    return found


def rest_error(error: A2AError) -> bytes:
    """Return the body of an error in the HTTP+JSON binding."""
    codes = error.kind.value
    return orjson.dumps(
        {
            "error": {
                "code": codes.http,
                "status": codes.grpc.name,
                "message": error.message,
                "details": details(error),
            }
        }
    )


def rpc_error(request_id: str | int | None, error: A2AError) -> dict[str, Any]:
    """Return an error in the JSON-RPC binding."""
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "error": {"code": error.kind.value.jsonrpc, "message": error.message, "data": details(error)},
    }


def rpc_result(request_id: str | int | None, message: Message) -> dict[str, Any]:
    """Return a result in the JSON-RPC binding."""
    return {"jsonrpc": "2.0", "id": request_id, "result": document(message)}
