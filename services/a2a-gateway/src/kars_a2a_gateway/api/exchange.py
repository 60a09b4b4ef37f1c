"""One HTTP request and its answer, over ASGI: bounded reading, and writing that does not wait for ever."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from kars_a2a_gateway.callers.principals import Credentials
from kars_a2a_gateway.errors import A2AError, Kind

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[str, str]]

SEND_TIMEOUT_S = 20.0
_MAX_QUERY_FIELDS = 32


class ClientGoneError(Exception):
    """The client hung up, or does not read; there is nobody to answer."""


class Exchange:
    """A request, and the one answer to it."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, always: tuple[tuple[str, str], ...]
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._scope = scope
        self._receive = receive
        self._send = send
        self._always = always
        self._headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        self.extra: list[tuple[str, str]] = []
        """Headers that the answer will have, whatever it is."""
        self.started = False

    def header(self, name: str) -> str:
        """Return a header; empty when it is absent. Of several the first."""
        return self._headers.get(name, [""])[0]

    def headers(self, name: str) -> tuple[str, ...]:
        """Return every value of a header."""
        return tuple(self._headers.get(name, ()))

    @property
    def peer(self) -> str:
        """The address that connects."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    @property
    def media_type(self) -> str:
        """The body's media type, lower case, without parameters."""
        return self.header("content-type").partition(";")[0].strip().lower()

    def credentials(self) -> Credentials:
        """Return what was presented. No other header says anything about who calls."""
        return Credentials(
            certificate_der=self._scope.get("state", {}).get("peer_certificate"),
            authorization=self.headers("authorization"),
            api_key=self.headers("x-api-key"),
        )

    def query(self) -> dict[str, list[str]]:
        """Return the query's fields.

        Raises:
            A2AError: INVALID_REQUEST.
        """
        found: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(
                self._scope["query_string"].decode("ascii"),
                keep_blank_values=True,
                max_num_fields=_MAX_QUERY_FIELDS,
                errors="strict",
            )
        except (ValueError, UnicodeDecodeError) as exc:
            raise A2AError(Kind.INVALID_REQUEST, "the query cannot be read") from exc
        for name, value in pairs:
            found.setdefault(name, []).append(value)
        return found

    async def body(self, limit: int) -> bytes:
        """Read the body.

        Raises:
            A2AError: PAYLOAD_TOO_LARGE.
            ClientGoneError: it never came.
        """
        declared = self.header("content-length")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)

    async def respond(self, status: int, body: bytes, media_type: str, headers: Headers = ()) -> None:
        """Send a whole answer."""
        await self._start(
            status, [("content-type", media_type), ("content-length", str(len(body))), *headers]
        )
        await self._write({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def begin_stream(self, headers: Headers = ()) -> None:
        """Begin an event stream."""
        await self._start(
            200,
            [
                ("content-type", "text/event-stream"),
                ("cache-control", "no-store"),
                ("x-accel-buffering", "no"),
                *headers,
            ],
        )

    async def write_chunk(self, chunk: bytes) -> None:
        """Send a part of a stream.

        Raises:
            ClientGoneError: the client does not read.
        """
        await self._write({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end_stream(self) -> None:
        """End a stream in good order."""
        await self._write({"type": "http.response.body", "body": b"", "more_body": False})

    async def gone(self) -> None:
        """Wait until the client hangs up; call only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            continue

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        every = [*headers, *self.extra, *self._always]
        await self._write(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in every],
            }
        )

    async def _write(self, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError as exc:
            raise ClientGoneError from exc


def _too_large(limit: int) -> A2AError:
    return A2AError(Kind.PAYLOAD_TOO_LARGE, f"the body has more than {limit} bytes")
