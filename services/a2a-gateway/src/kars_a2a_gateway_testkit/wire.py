"""Small helpers for raw requests."""

import uuid
from typing import Any

VERSION = {"A2A-Version": "1.0"}


def message(text: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    """Return the parameters of a send."""
    return {
        "message": {
            "messageId": str(uuid.uuid4()),
            "role": "ROLE_USER",
            "parts": [{"text": text}],
            **fields,
        }
    }


def rpc(method: str, params: Any, request_id: Any = 1) -> dict[str, Any]:  # noqa: ANN401  # JSON
    """Return a JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def reason(error: dict[str, Any]) -> str:
    """Return the ErrorInfo reason of a JSON-RPC or HTTP+JSON error body."""
    details = error["error"].get("data") or error["error"].get("details")
    info = details[0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info["domain"] == "a2a-protocol.org"
    found: str = info["reason"]
    return found


def why(error: dict[str, Any]) -> str:
    """Return the stable code beside the reason, where there is one."""
    details = error["error"].get("data") or error["error"].get("details")
    found: str = details[0]["metadata"].get("why", "")
    return found
