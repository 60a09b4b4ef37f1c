"""Tools that are calls of the router's door. Only what the router announces is offered.

`GET /agt/tools` answers `{"tools": [{"name": "http_fetch", "method": "POST", "path": "/egress/fetch"}]}`. A
name that is not known here is left out: its parameters would be a stranger's. A router that announces nothing
(404) offers nothing. The call itself is decided by the router, as every call is.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

import httpx2
from mcp.server.mcpserver import MCPServer
from pydantic import Field

MAX_ANSWER_BYTES = 1024 * 1024
_CALL_TIMEOUT_S = 120.0
_PATH = re.compile(r"(?:/(?:[a-z0-9_-]+|\{name\}))+")
_METHODS = frozenset({"GET", "POST", "DELETE"})

Name = Annotated[
    str, Field(description="Name of the sub-agent.", pattern=r"^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$")
]


@dataclass(frozen=True, kw_only=True)
class Announced:
    """One tool that the router serves."""

    name: str
    method: str
    path: str


class DoorTools:
    """Calls the door for the tools that it announced."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._routes: dict[str, Announced] = {}

    async def learn(self) -> list[str]:
        """Ask the router what it serves; returns the names that are offered."""
        try:
            answer = await self._http.get("/agt/tools")
            entries = answer.json()["tools"] if answer.status_code == 200 else []
            announced = [
                Announced(name=each["name"], method=each["method"], path=each["path"]) for each in entries
            ]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            announced = []
        self._routes = {
            each.name: each
            for each in announced
            if each.name in _TOOLS and each.method in _METHODS and _PATH.fullmatch(each.path)
        }
        return sorted(self._routes)

    def add_to(self, server: MCPServer[Any]) -> None:
        """Offer what was announced."""
        for name in sorted(self._routes):
            server.add_tool(_TOOLS[name](self), name=name, structured_output=False)

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """Call a tool's route. A refusal comes back with its reason."""
        route = self._routes[tool]
        path, given = route.path, {name: value for name, value in arguments.items() if value is not None}
        if "{name}" in path:
            path = path.replace("{name}", quote(str(given.pop("name")), safe=""))
        body = None if route.method == "GET" else given
        try:
            async with self._http.stream(
                route.method,
                path,
                json=body,
                params=given if route.method == "GET" else None,
                timeout=_CALL_TIMEOUT_S,
            ) as answer:
                content = await _bounded(answer)
        except httpx2.HTTPError as exc:
            return json.dumps({"error": "door_unreachable", "message": type(exc).__name__})
        if answer.status_code >= 400:
            return json.dumps({"error": _reason(content, answer.status_code)})
        return content


async def _bounded(answer: httpx2.Response) -> str:
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            return json.dumps({"error": "answer_too_large", "message": f"more than {MAX_ANSWER_BYTES} bytes"})
    return content.decode(errors="replace")


def _reason(content: str, status: int) -> object:
    try:
        error = json.loads(content)["error"]
        return {"code": str(error["code"])[:64], "message": str(error["message"])[:512]}
    except (ValueError, KeyError, TypeError):
        return {"code": f"http_{status}", "message": ""}


Tool = Callable[..., Awaitable[str]]


def _spawn(door: DoorTools) -> Tool:
    async def kars_spawn(
        name: Name,
        model: str | None = None,
        governance: dict[str, Any] | None = None,
        role: Annotated[str | None, Field(max_length=1024)] = None,
    ) -> str:
        """Create a sub-agent and wait until it runs."""
        given = {"name": name, "model": model, "governance": governance, "role": role}
        return await door.call("kars_spawn", given)

    return kars_spawn


def _spawn_list(door: DoorTools) -> Tool:
    async def kars_spawn_list() -> str:
        """List your sub-agents."""
        return await door.call("kars_spawn_list", {})

    return kars_spawn_list


def _spawn_status(door: DoorTools) -> Tool:
    async def kars_spawn_status(name: Name) -> str:
        """Tell how a sub-agent is."""
        return await door.call("kars_spawn_status", {"name": name})

    return kars_spawn_status


def _spawn_destroy(door: DoorTools) -> Tool:
    async def kars_spawn_destroy(name: Name) -> str:
        """Remove a sub-agent."""
        return await door.call("kars_spawn_destroy", {"name": name})

    return kars_spawn_destroy


def _handoff_request(door: DoorTools) -> Tool:
    async def kars_handoff_request(
        direction: Annotated[str, Field(max_length=64)],
        reason: Annotated[str | None, Field(max_length=1024)] = None,
    ) -> str:
        """Ask to move this agent; a person gets a code to confirm it with."""
        return await door.call("kars_handoff_request", {"direction": direction, "reason": reason})

    return kars_handoff_request


def _handoff_confirm(door: DoorTools) -> Tool:
    async def kars_handoff_confirm(confirmation_token: Annotated[str, Field(max_length=256)]) -> str:
        """Confirm a move with the code that a person was given."""
        return await door.call("kars_handoff_confirm", {"confirmation_token": confirmation_token})

    return kars_handoff_confirm


def _handoff_status(door: DoorTools) -> Tool:
    async def kars_handoff_status(since_step: Annotated[int | None, Field(ge=0)] = None) -> str:
        """Tell how far a move is."""
        return await door.call("kars_handoff_status", {"since_step": since_step})

    return kars_handoff_status


def _http_fetch(door: DoorTools) -> Tool:
    async def http_fetch(
        url: Annotated[str, Field(max_length=8192)],
        method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] | None = None,
        headers: dict[str, str] | None = None,
        body: str | None = None,
    ) -> str:
        """Fetch a web address, as far as policy allows it."""
        given = {"url": url, "method": method, "headers": headers, "body": body}
        return await door.call("http_fetch", given)

    return http_fetch


def _memory(door: DoorTools) -> Tool:
    async def foundry_memory(
        operation: Annotated[str, Field(max_length=64)],
        text: Annotated[str | None, Field(max_length=65536)] = None,
        scope: Annotated[str | None, Field(max_length=256)] = None,
        top_k: Annotated[int | None, Field(ge=1, le=100)] = None,
    ) -> str:
        """Keep something for later, or look it up."""
        given = {"operation": operation, "text": text, "scope": scope, "top_k": top_k}
        return await door.call("foundry_memory", given)

    return foundry_memory


_TOOLS: dict[str, Callable[[DoorTools], Tool]] = {
    "kars_spawn": _spawn,
    "kars_spawn_list": _spawn_list,
    "kars_spawn_status": _spawn_status,
    "kars_spawn_destroy": _spawn_destroy,
    "kars_handoff_request": _handoff_request,
    "kars_handoff_confirm": _handoff_confirm,
    "kars_handoff_status": _handoff_status,
    "http_fetch": _http_fetch,
    "foundry_memory": _memory,
}
