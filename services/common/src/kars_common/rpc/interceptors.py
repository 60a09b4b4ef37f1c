"""What stands between the wire and every servicer, in this order, outermost first.

1. tracing (OpenTelemetry, put in by the server when it is configured), then `metrics`
2. `ErrorInterceptor`: turns errors into statuses and logs the unknown ones, once
3. `AuthorizationInterceptor`: needs 2 to answer for it; nothing after it sees an unknown caller
4. `DeadlineInterceptor`: bounds unary calls, whatever the client asked for
5. `StreamInterceptor`: ends open streams when the server stops

Knows no service's meaning.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from typing import cast

import grpc
from cryptography import x509

from kars_common import errors, spiffe, svid
from kars_common.rpc import _handlers, status
from kars_common.rpc.authorization import AuthorizationTable

_LOG = logging.getLogger(__name__)

Context = _handlers.Context
Handler = _handlers.Handler
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Runs `around` around every call, those of methods that nobody implements included."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Wrap whatever handler the next interceptor gives."""
        method = handler_call_details.method.lstrip("/")
        handler = await _existing(continuation, handler_call_details)
        return _handlers.wrap(handler, lambda context: self.around(method, context))

    def around(self, method: str, context: Context) -> AbstractAsyncContextManager[None]:
        """Return the async context manager to run one call in."""
        raise NotImplementedError


class ErrorInterceptor(Interceptor):
    """Answers a KarsError with its status and reason, any other error with INTERNAL and no inner text."""

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        """Map whatever the call raises."""
        try:
            yield
        except errors.KarsError as error:
            _LOG.info("call refused", extra={"method": method, "reason": error.reason})
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception:  # noqa: BLE001  # the boundary: a servicer's bug ends its call, not the server
            _LOG.exception("call failed", extra={"method": method})
            await _abort(context, errors.InternalError("internal", "the server failed to answer this call"))


class AuthorizationInterceptor(Interceptor):
    """Lets through only callers that the table names for the method."""

    def __init__(self, table: AuthorizationTable, trust_domain: Callable[[], str]) -> None:
        self._table = table
        self._trust_domain = trust_domain

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        """Check the caller before the servicer is entered."""
        self._table.check(method, peer(context), self._trust_domain())
        yield


class DeadlineInterceptor(Interceptor):
    """Ends a unary call at the client's deadline or after `max_unary_s`, whichever is sooner."""

    def __init__(self, max_unary_s: float) -> None:
        self._max_unary_s = max_unary_s

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Bound unary calls; streams are bounded by their servicers and by keepalive."""
        handler = await _existing(continuation, handler_call_details)
        if handler.request_streaming or handler.response_streaming:
            return handler
        method = handler_call_details.method.lstrip("/")
        return _handlers.wrap(handler, lambda context: self.around(method, context))

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        """Time the call out."""
        remaining = cast("float | None", context.time_remaining())  # None: the client set no deadline
        bound = self._max_unary_s if remaining is None else min(max(remaining, 0), self._max_unary_s)
        try:
            async with asyncio.timeout(bound) as scope:
                yield
        except TimeoutError as exc:
            if not scope.expired():
                raise
            message = f"{method} did not finish within {bound:.1f} s"
            raise errors.DeadlineExceededError("deadline_exceeded", message) from exc


class StreamInterceptor(Interceptor):
    """Lets the server end streams: most are watches, which would never end by themselves."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self._end_at: float | None = None

    def end(self, grace_s: float) -> None:
        """Refuse streams from `grace_s` on, those that are open included."""
        self._end_at = asyncio.get_running_loop().time() + grace_s
        for scope in self._open:
            scope.reschedule(self._end_at)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Watch over streams; unary calls drain by themselves."""
        handler = await _existing(continuation, handler_call_details)
        if not handler.response_streaming:
            return handler
        method = handler_call_details.method.lstrip("/")
        return _handlers.wrap(handler, lambda context: self.around(method, context))

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:  # noqa: ARG002  # one shape
        """Run one stream until the server ends it."""
        scope = asyncio.timeout_at(self._end_at)
        try:
            async with scope:
                self._open.add(scope)
                try:
                    yield
                finally:
                    self._open.discard(scope)
        except TimeoutError as exc:
            if not scope.expired():
                raise
            raise errors.UnavailableError("server_stopping", f"{method} ends: the server stops") from exc


def caller(context: Context) -> spiffe.SpiffeId:
    """Return the identity that the caller's certificate proved.

    Raises:
        UnauthenticatedError: `client_certificate_required` when there is no certificate.
    """
    identity = peer(context)
    if identity is None:
        raise errors.UnauthenticatedError("client_certificate_required", "the caller proved no identity")
    return identity


def peer(context: Context) -> spiffe.SpiffeId | None:
    """Return the proven identity, or None for a caller without a certificate.

    TLS judged the certificate when the connection was opened; its end is judged again at each call, so
    an open connection is no way around a lifetime.

    Raises:
        UnauthenticatedError: `peer_identity_invalid` when the certificate names no single SPIFFE id,
            `peer_certificate_expired`.
    """
    pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
    if not pem:
        return None
    try:
        identity, expires = _read_certificate(pem)
    except (errors.InvalidInputError, ValueError) as exc:
        raise errors.UnauthenticatedError(
            "peer_identity_invalid", "the client certificate must name exactly one SPIFFE id"
        ) from exc
    if time.time() >= expires:
        raise errors.UnauthenticatedError(
            "peer_certificate_expired", f"the certificate of {identity} expired on this connection"
        )
    return identity


@lru_cache(maxsize=1024)
def _read_certificate(pem: bytes) -> tuple[spiffe.SpiffeId, float]:
    """Return identity and end of validity; the same bytes come with every call of a connection."""
    leaf = x509.load_pem_x509_certificate(pem)
    return svid.spiffe_id_of(leaf), leaf.not_valid_after_utc.timestamp()


async def _abort(context: Context, error: errors.KarsError) -> None:
    answer = status.to_grpc_status(error)
    await context.abort(answer.code, answer.details, answer.trailing_metadata)


async def _existing(continuation: Continuation, details: grpc.HandlerCallDetails) -> Handler:
    return await continuation(details) or grpc.unary_unary_rpc_method_handler(_no_such_method)


async def _no_such_method(_request: bytes, _context: Context) -> bytes:
    # Reached only when the table has a rule for a method that no servicer implements.
    raise errors.NotFoundError("method_not_found", "no such method here")
