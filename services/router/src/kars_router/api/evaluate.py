"""`POST /agt/evaluate`: the runtime contract's hook before a tool runs. A ToolCall on the same path.

The answer is always 200 for a readable question: `allowed` and why. `agent_id`
is read by nobody; whose call it is the door knows.
"""

import asyncio
import math
from typing import Any

import orjson

from kars_router.api import strict_json, wire
from kars_router.api.body import BodyError, read_json_body
from kars_router.api.chat import HttpRelease
from kars_router.limits.room import Lease
from kars_router.pipeline.call import CallerGoneError, ToolCall
from kars_router.pipeline.door import Door
from kars_router.pipeline.path import Path
from kars_router.pipeline.verdicts import Decision, Deny

MAX_BODY_BYTES = 1024 * 1024
_MAX_ACTION_CHARS = 65_536
_MAX_CONTEXT_KEYS = 64


class EvaluateEndpoint:
    """Answers questions of one door's runtime."""

    def __init__(self, door: Door, path: Path) -> None:
        self._door = door
        self._path = path

    async def __call__(
        self, scope: wire.Scope, receive: wire.Receive, send: wire.Send, trace: str
    ) -> Deny | None:
        """Serve one question; see `ChatEndpoint`."""
        with self._door.room.lease() as lease:
            return await self._serve(scope, receive, send, trace, lease)

    async def _serve(
        self, scope: wire.Scope, receive: wire.Receive, send: wire.Send, trace: str, lease: Lease
    ) -> Deny | None:
        headers: wire.Headers = [(wire.TRACE_HEADER, trace.encode())]
        try:
            document = strict_json.parse_object(await read_json_body(scope, receive, MAX_BODY_BYTES, lease))
            action, context = _question(document)
        except BodyError as exc:
            await wire.refuse(send, exc.denial, headers)
            return exc.denial
        except strict_json.MalformedJsonError as exc:
            denial = wire.bad_request(400, exc.code, str(exc))
            await wire.refuse(send, denial, headers)
            return denial
        release = HttpRelease(receive, send, headers, stream=False)
        call = ToolCall(
            door=self._door, release=release, trace_id=trace, named_action=action, context=context
        )
        try:
            outcome = await self._path.run(call)
            answer = _answer(call, outcome.denial)
            await wire.respond(send, 200, orjson.dumps(answer), headers, b"application/json")
        except CallerGoneError:
            pass  # settled and recorded; nobody is there to be told
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not release.hung_up or task is None:
                raise
            task.uncancel()
        finally:
            await release.close()
        return None


def _question(document: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return action and context.

    Raises:
        MalformedJsonError: `invalid_type`.
    """
    action = document.get("action", "unknown")
    context = document.get("context")
    context = {} if context is None else context
    if not isinstance(action, str) or not action.strip() or len(action) > _MAX_ACTION_CHARS:
        raise strict_json.MalformedJsonError("invalid_type", "action must be a non-empty string")
    if not isinstance(context, dict) or len(context) > _MAX_CONTEXT_KEYS:
        raise strict_json.MalformedJsonError(
            "invalid_type", f"context must be an object of up to {_MAX_CONTEXT_KEYS} keys"
        )
    if not isinstance(document.get("agent_id", ""), str | None):
        raise strict_json.MalformedJsonError("invalid_type", "agent_id must be a string")
    flat = {
        key: _text(value) for key, value in context.items() if isinstance(value, str | int | float | bool)
    }
    return action, flat


def _text(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _answer(call: ToolCall, denial: Deny | None) -> dict[str, Any]:
    decision = "allow" if denial is None else "deny"
    answer: dict[str, Any] = {
        "allowed": denial is None,
        "action": call.action.shown if call.action is not None else "",
        "decision": decision,
        "matched_rule": None,
        "reason": "" if denial is None else denial.message,
        "code": "" if denial is None else denial.code,
        "rate_limited": denial is not None and denial.decision is Decision.RATE_LIMITED,
    }
    if denial is not None and denial.retry_after_s is not None:
        answer["retry_after_secs"] = max(1, math.ceil(denial.retry_after_s))
    return answer
