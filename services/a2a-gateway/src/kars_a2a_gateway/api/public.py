"""The HTTP door as one ASGI application: finds the agent in the path and hands the request to a binding.

/agents/<namespace>/<name>                                 JSON-RPC
/agents/<namespace>/<name>/message:send, /tasks/..., ...   HTTP+JSON (also behind the tenant, as A2A has it)
/agents/<namespace>/<name>/.well-known/agent-card.json     the signed card
/.well-known/jwks.json                                     keys of cards and pushes
/.well-known/oauth-protected-resource/agents/...           RFC 9728
"""

import logging
import re
from collections.abc import Callable

import orjson

from kars_a2a_gateway.api import rest
from kars_a2a_gateway.api.exchange import ClientGoneError, Exchange, Receive, Scope, Send
from kars_a2a_gateway.api.jsonrpc import JsonRpc
from kars_a2a_gateway.api.rest import Rest
from kars_a2a_gateway.api.writing import JSON
from kars_a2a_gateway.callers import challenges
from kars_a2a_gateway.cards.key_ring import KeyRing
from kars_a2a_gateway.cards.shelf import Shelf
from kars_a2a_gateway.errors import A2AError, Kind
from kars_a2a_gateway.operations.admission import Admission, Knock
from kars_a2a_gateway.policy.exposures import Exposure, GatewayTable

_LOG = logging.getLogger(__name__)
_AGENT = re.compile(r"/agents/(?P<namespace>[a-z0-9-]{1,63})/(?P<name>[a-z0-9-]{1,58})(?P<rest>/.*)?")
_CARD_PATH = "/.well-known/agent-card.json"
_KEYS_PATH = "/.well-known/jwks.json"
_RESOURCE_PATH = "/.well-known/oauth-protected-resource"
_CORS = (
    ("access-control-allow-methods", "GET, POST, DELETE"),
    ("access-control-allow-headers", "authorization, content-type, a2a-version, a2a-extensions, x-api-key"),
    ("access-control-max-age", "600"),
)


class PublicApp:
    """The application that uvicorn serves."""

    def __init__(
        self,
        admission: Admission,
        json_rpc: JsonRpc,
        rest_binding: Rest,
        shelf: Shelf,
        ring: KeyRing,
        *,
        table: Callable[[], GatewayTable],
        public_url: str,
        card_max_age_s: int,
    ) -> None:
        self._admission = admission
        self._json_rpc = json_rpc
        self._rest = rest_binding
        self._shelf = shelf
        self._ring = ring
        self._table = table
        self._public_url = public_url
        self._card_max_age_s = card_max_age_s
        self._always: tuple[tuple[str, str], ...] = (("x-content-type-options", "nosniff"),)
        if public_url.startswith("https://"):
            self._always += (("strict-transport-security", "max-age=31536000"),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send, self._always)
        try:
            await self._answer(exchange)
        except ClientGoneError:
            _LOG.debug("a client hung up")
        except A2AError as error:
            if not exchange.started:
                await rest.refuse(exchange, error)
        except Exception:  # noqa: BLE001  # the boundary: a bug ends one request, and its text stays inside
            _LOG.exception("a request failed")
            if not exchange.started:
                await rest.refuse(exchange, A2AError(Kind.INTERNAL_ERROR, "the gateway failed to answer"))

    async def _answer(self, exchange: Exchange) -> None:
        found = _AGENT.fullmatch(exchange.path)
        if found is None:
            await self._well_known(exchange)
            return
        agent, rest_of_path = f"{found['namespace']}/{found['name']}", found["rest"] or "/"
        if rest_of_path.startswith(f"/{agent}/"):  # the variant with the tenant in the path
            rest_of_path = rest_of_path[len(agent) + 1 :]
        if rest_of_path == _CARD_PATH:
            await self._card(exchange, agent)
            return
        knock = self._knock(exchange, agent)
        if exchange.method == "OPTIONS":
            await self._preflight(exchange, knock)
            return
        self._allow_origin(exchange, knock)
        if rest_of_path == "/":
            if exchange.method != "POST":
                error = A2AError(Kind.METHOD_NOT_ALLOWED, "JSON-RPC is POST", headers=(("allow", "POST"),))
                raise error
            await self._json_rpc.answer(exchange, knock)
        else:
            await self._rest.answer(exchange, rest_of_path, knock)

    async def _well_known(self, exchange: Exchange) -> None:
        if exchange.method not in ("GET", "HEAD"):
            raise A2AError(Kind.AGENT_NOT_FOUND, "no such agent here")
        if exchange.path == _KEYS_PATH:
            body = orjson.dumps(self._ring.key_set())
            await exchange.respond(
                200, body, "application/jwk-set+json", [("cache-control", "public, max-age=300")]
            )
            return
        table = self._table()
        if exchange.path == _CARD_PATH and table.root_agent:
            await self._card(exchange, table.root_agent)
            return
        found = _AGENT.fullmatch(exchange.path.removeprefix(_RESOURCE_PATH))
        if exchange.path.startswith(_RESOURCE_PATH) and found is not None and found["rest"] is None:
            exposure, table = self._admission.find(f"{found['namespace']}/{found['name']}")
            document = challenges.resource_metadata(exposure, table, self._public_url)
            await exchange.respond(
                200, orjson.dumps(document), JSON, [("cache-control", "public, max-age=300")]
            )
            return
        raise A2AError(Kind.AGENT_NOT_FOUND, "no such agent here")

    async def _card(self, exchange: Exchange, agent: str) -> None:
        if exchange.method not in ("GET", "HEAD"):
            raise A2AError(
                Kind.METHOD_NOT_ALLOWED, "a card is read with GET", headers=(("allow", "GET, HEAD"),)
            )
        exposure, table = self._admission.find(agent)
        self._admission.limit_strangers(agent)
        public = await self._shelf.public(exposure, table)
        headers = [
            ("etag", public.etag),
            ("cache-control", f"public, max-age={self._card_max_age_s}"),
            ("access-control-allow-origin", "*"),  # a card is public; nothing of a browser's user is in it
        ]
        if _matches(exchange.headers("if-none-match"), public.etag):
            await exchange.respond(304, b"", JSON, headers)
            return
        await exchange.respond(200, public.body, JSON, headers)

    async def _preflight(self, exchange: Exchange, knock: Knock) -> None:
        self._allow_origin(exchange, knock)
        allowed = bool(exchange.extra)
        await exchange.respond(204 if allowed else 403, b"", JSON, _CORS if allowed else ())

    def _allow_origin(self, exchange: Exchange, knock: Knock) -> None:
        if not knock.origin:
            return
        exposure: Exposure | None = None
        try:
            exposure, _ = self._admission.find(knock.agent)
        except A2AError:
            return  # said where the request is judged
        if knock.origin in exposure.allowed_origins:
            exchange.extra += [("access-control-allow-origin", knock.origin), ("vary", "Origin")]

    def _knock(self, exchange: Exchange, agent: str) -> Knock:
        version = exchange.header("a2a-version") or exchange.query().get("A2A-Version", [""])[0]
        return Knock(
            agent=agent,
            credentials=exchange.credentials(),
            version=version,
            extensions=exchange.headers("a2a-extensions"),
            origin=exchange.header("origin"),
            peer=exchange.peer,
            traceparent=_traceparent(exchange.header("traceparent")),
        )


def _matches(conditions: tuple[str, ...], etag: str) -> bool:
    wanted = {part.strip().removeprefix("W/") for header in conditions for part in header.split(",")}
    return etag in wanted or "*" in wanted


def _traceparent(value: str) -> str:
    return value if re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", value) else ""
