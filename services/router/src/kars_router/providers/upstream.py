"""The one interface to HTTP endpoints outside, and what can go wrong there.

Says of each failure whether the endpoint can have seen the request: what may
have been worked on is charged and never sent a second time.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol


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
        """Return the first value of a header; `name` in lower case."""

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
    ) -> UpstreamResponse:
        """Send one POST and return when the response's head is here. Raises UpstreamError."""

    async def close(self) -> None:
        """Close all connections."""
