"""The one interface to HTTP endpoints outside, and its implementation on reqwest.

Never follows redirects, never reads proxy settings from the environment, never
stores cookies, never decompresses (no bomb), and says of each failure whether
the endpoint can have seen the request.
"""

import datetime
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

import certifi
from pyreqwest import exceptions
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

_BUFFERED_BYTES = 64 * 1024


class UpstreamError(Exception):
    """The endpoint gave no usable answer.

    Attributes:
        maybe_received: False when it surely did not get the request.
        timed_out: True when it took too long.
    """

    def __init__(self, message: str, *, maybe_received: bool, timed_out: bool = False) -> None:
        super().__init__(message)
        self.maybe_received = maybe_received
        self.timed_out = timed_out


class AnswerTooLargeError(UpstreamError):
    """The answer is larger than allowed."""


class UpstreamResponse(Protocol):
    """A response whose body is still arriving. Must be closed."""

    @property
    def status(self) -> int:
        """HTTP status."""

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises UpstreamError."""

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body. Raises UpstreamError, AnswerTooLargeError."""

    async def close(self) -> None:
        """Let go of the connection; safe to call twice."""


class Upstream(Protocol):
    """Sends requests."""

    async def post(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        credential: tuple[str, str] | None,
        body: bytes,
        *,
        whole: bool = False,
    ) -> UpstreamResponse:
        """Send one POST and return when the response's head is here. Raises UpstreamError.

        With `whole` the caller wants the body in one piece: a small one may be awaited with the head.
        """

    async def close(self) -> None:
        """Close all connections."""


class ReqwestUpstream:
    """`Upstream` on pyreqwest, chosen by measurement (ARCHITECTURE 8)."""

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float,
        ca_pem: bytes | None = None,
    ) -> None:
        def builder(*roots: bytes) -> ClientBuilder:
            made = _plain_builder(connect_timeout_s, read_timeout_s, total_timeout_s)
            for root in roots:
                made = made.add_root_certificate_pem(root)
            return made

        own = () if ca_pem is None else (ca_pem,)
        try:
            self._client: Client = builder(*own).build()
        except exceptions.BuilderError:
            # A slim machine or image has no roots of its own, and then not even plain HTTP would work.
            self._client = builder(*own, Path(certifi.where()).read_bytes()).build()

    async def post(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        credential: tuple[str, str] | None,
        body: bytes,
        *,
        whole: bool = False,
    ) -> "ReqwestResponse":
        """Send one POST; see `Upstream`."""
        builder = self._client.post(url).headers(headers).body_bytes(body)
        if credential is not None:
            builder = builder.header(*credential, is_sensitive=True)
        # In a stream the first token would wait until the buffer is full (measured: 3 s). A body that is
        # wanted whole comes with its head: one turn of the client's thread less (measured: 0.03 ms).
        request = builder.streamed_read_buffer_limit(_BUFFERED_BYTES if whole else 0).build_streamed()
        try:
            response = await request.__aenter__()
        except exceptions.PyreqwestError as exc:
            raise _translate(exc) from None
        return ReqwestResponse(request, response)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


class ReqwestResponse:
    """`UpstreamResponse` on pyreqwest."""

    def __init__(self, request: StreamRequest, response: Response) -> None:
        self._request: StreamRequest | None = request
        self._response = response
        self.status = response.status

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        return self._response.get_header(name)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        reader = self._response.body_reader
        try:
            while (chunk := await reader.read_chunk()) is not None:
                yield bytes(chunk)
        except exceptions.PyreqwestError as exc:
            raise _translate(exc, maybe_received=True) from None

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body."""
        length = self._response.get_header("content-length")
        if length is not None and length.isdigit() and int(length) <= max_bytes:
            try:
                return bytes(await self._response.bytes())
            except exceptions.PyreqwestError as exc:
                raise _translate(exc, maybe_received=True) from None
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > max_bytes:
                raise AnswerTooLargeError("the answer is too large", maybe_received=True)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def close(self) -> None:
        """Let go of the connection."""
        request, self._request = self._request, None
        if request is not None:
            await request.__aexit__(None, None, None)


def _plain_builder(connect_timeout_s: float, read_timeout_s: float, total_timeout_s: float) -> ClientBuilder:
    return (
        ClientBuilder()
        .follow_redirects(enable=False)
        .no_proxy()
        .referer(enable=False)
        .default_cookie_store(enable=False)
        .gzip(enable=False)
        .brotli(enable=False)
        .zstd(enable=False)
        .deflate(enable=False)
        .user_agent("kars-router")
        .pool_max_idle_per_host(256)
        .connect_timeout(datetime.timedelta(seconds=connect_timeout_s))
        .read_timeout(datetime.timedelta(seconds=read_timeout_s))
        .timeout(datetime.timedelta(seconds=total_timeout_s))
    )


def _translate(exc: exceptions.PyreqwestError, *, maybe_received: bool = False) -> UpstreamError:
    timed_out = isinstance(exc, exceptions.RequestTimeoutError)
    # The client's own text names the address; it stays here.
    text = "the provider took too long" if timed_out else "the provider cannot be reached"
    received = maybe_received or not _surely_unsent(exc)
    return UpstreamError(text, maybe_received=received, timed_out=timed_out)


def _surely_unsent(exc: exceptions.PyreqwestError) -> bool:
    if isinstance(exc, exceptions.ConnectTimeoutError | exceptions.PoolTimeoutError):
        return True
    # ConnectError alone proves nothing: it also stands for a connection that broke under the request.
    causes = (exc.details.get("causes") or ()) if isinstance(exc, exceptions.ConnectError) else ()
    return any(cause["message"] == "client error (Connect)" for cause in causes)
