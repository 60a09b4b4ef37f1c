"""The ASGI application of one door: a closed table of routes, and the answer to everything else.

Admin, governance and mesh routes of other doors do not exist here: an agent
that asks for them gets 404 and a record.
"""

import logging
from collections.abc import Awaitable, Callable

import orjson

from kars_router.api import wire
from kars_router.api.body import DisconnectedError
from kars_router.pipeline.door import Door
from kars_router.pipeline.verdicts import Deny

Endpoint = Callable[[wire.Scope, wire.Receive, wire.Send, str], Awaitable[Deny | None]]

_MESH = "/mesh/v1/"
_log = logging.getLogger(__name__)


class DoorApp:
    """Routes requests of one door."""

    def __init__(
        self,
        door: Door,
        *,
        chat: Endpoint,
        evaluate: Endpoint,
        ready: Callable[[], list[str]],
        metrics: Callable[[], tuple[bytes, bytes]],
        on_refused: Callable[[Door, Deny, str], Awaitable[None]],
        mesh: Endpoint | None = None,
    ) -> None:
        """Take what serves each route.

        Args:
            door: whose requests these are.
            chat: chat completions.
            evaluate: the runtime's question before a tool runs.
            ready: returns what is missing; empty when the door can serve.
            metrics: returns body and content type for scrapers.
            on_refused: told (door, denial, path) of each request that never became a call.
            mesh: serves everything below `/mesh/v1/`.
        """
        self._door = door
        self._ready = ready
        self._metrics = metrics
        self._on_refused = on_refused
        self._mesh = mesh
        self._routes: dict[str, tuple[str, Endpoint]] = {
            "/v1/chat/completions": ("POST", chat),
            "/openai/v1/chat/completions": ("POST", chat),
            "/agt/evaluate": ("POST", evaluate),
            "/v1/models": ("GET", self._models),
            "/openai/v1/models": ("GET", self._models),
            "/healthz": ("GET", self._healthz),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._serve_metrics),
        }

    async def __call__(self, scope: wire.Scope, receive: wire.Receive, send: wire.Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return
        trace = wire.trace_id(scope["headers"])
        try:
            denial = await self._dispatch(scope, receive, send, trace)
        except DisconnectedError:
            return
        except Exception as exc:  # noqa: BLE001 - the boundary: one request's failure is its own
            _log.error("a request failed", extra={"error": type(exc).__name__, "trace": trace})
            body = wire.error_body("internal_error", "internal_error", "the request failed inside the router")
            await wire.respond(send, 500, body, [(wire.TRACE_HEADER, trace.encode())], b"application/json")
            return
        if denial is not None:
            await self._on_refused(self._door, denial, scope["path"])

    async def _dispatch(
        self, scope: wire.Scope, receive: wire.Receive, send: wire.Send, trace: str
    ) -> Deny | None:
        route = self._routes.get(scope["path"])
        if route is None and self._mesh is not None and scope["path"].startswith(_MESH):
            return await self._mesh(scope, receive, send, trace)
        if route is None:
            denial = wire.bad_request(404, "route_not_found", "this door does not serve that path")
        elif scope["method"] != route[0]:
            denial = wire.bad_request(405, "method_not_allowed", f"use {route[0]}")
        else:
            return await route[1](scope, receive, send, trace)
        headers = [(wire.TRACE_HEADER, trace.encode())]
        if route is not None:
            headers.append((b"allow", route[0].encode()))
        await wire.refuse(send, denial, headers)
        return denial

    async def _models(self, _scope: wire.Scope, _receive: wire.Receive, send: wire.Send, trace: str) -> None:
        """List what policy allows, and nothing else."""
        policy = self._door.policy
        models = policy.models if policy is not None else ()
        data = [
            {"id": model.deployment, "object": "model", "created": 0, "owned_by": model.provider}
            for model in models
        ]
        body = orjson.dumps({"object": "list", "data": data})
        await wire.respond(send, 200, body, [(wire.TRACE_HEADER, trace.encode())], b"application/json")

    async def _healthz(
        self, _scope: wire.Scope, _receive: wire.Receive, send: wire.Send, _trace: str
    ) -> None:
        await wire.respond(send, 200, b"ok", [], b"text/plain; charset=utf-8")

    async def _readyz(self, _scope: wire.Scope, _receive: wire.Receive, send: wire.Send, _trace: str) -> None:
        missing = self._ready()
        status, text = (503, "not ready: " + ", ".join(missing)) if missing else (200, "ok")
        await wire.respond(send, status, text.encode(), [], b"text/plain; charset=utf-8")

    async def _serve_metrics(
        self, _scope: wire.Scope, _receive: wire.Receive, send: wire.Send, _trace: str
    ) -> None:
        body, content_type = self._metrics()
        await wire.respond(send, 200, body, [], content_type)
