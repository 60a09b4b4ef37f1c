"""A channel to one peer that outlives the certificates it was opened with.

A gRPC channel in Python keeps its client certificate for ever. `PeerChannel` therefore opens a new
one when the source has a new SVID, sends every further call there, and lets the old one end when its
calls have. Stubs made by `stub` always use the live one, so they can be kept.

Every unary call has a deadline. Only methods named idempotent are retried (by gRPC itself: back-off,
jitter, and a budget that stops retries while most calls fail).
"""

# ruff: noqa: ANN401  # gRPC is generic over messages, which nothing here looks at

import asyncio
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import grpc

from kars_common import telemetry
from kars_common.rpc import status
from kars_common.rpc.credentials import channel_credentials
from kars_common.svid import Svid, SvidSource

_Stub = TypeVar("_Stub")
_MAX_MESSAGE_BYTES = 5 * 1024 * 1024


class PeerChannel:
    """All calls of this process to one peer. Use from one event loop; close when done."""

    def __init__(
        self,
        source: SvidSource,
        endpoint: str,
        dns_name: str,
        *,
        idempotent: Collection[str] = (),
        timeout_s: float = 10.0,
        drain_s: float = 600.0,
    ) -> None:
        """Describe the channel; it is opened by the first call.

        Args:
            source: the SVID to prove, and the roots to verify the peer with.
            endpoint: `host:port` or `unix:<path>`.
            dns_name: the DNS SAN that the peer's certificate must have (`SpiffeId.dns_name`).
            idempotent: full names (`package.Service/Method`) that may be retried.
            timeout_s: deadline of a unary call that names none.
            drain_s: how long calls on a replaced channel may still run.
        """
        self._source = source
        self._endpoint = endpoint
        self._options = _options(dns_name, idempotent)
        self._timeout_s = timeout_s
        self._drain_s = drain_s
        self._live: _Live | None = None
        self._draining: set[asyncio.Task[None]] = set()
        self._facade = _Facade(self)
        self._closed = False

    @property
    def source(self) -> SvidSource:
        """The source whose SVID this channel proves."""
        return self._source

    @property
    def timeout_s(self) -> float:
        """Deadline of a unary call that names none."""
        return self._timeout_s

    def stub(self, factory: Callable[[grpc.aio.Channel], _Stub]) -> _Stub:
        """Return a generated stub whose calls go through whichever channel is live.

        A call raises UnavailableError `svid_unavailable` at once while there is no SVID, and
        `grpc.aio.AioRpcError` otherwise; `mapped_errors` turns the latter into KarsError.
        """
        # A facade has what a stub uses of a channel, and nothing else.
        return factory(cast("grpc.aio.Channel", self._facade))

    def live(self) -> "_Live":
        """Return the live channel, a fresh one when the SVID changed.

        Raises:
            UnavailableError: `svid_unavailable`.
        """
        if self._closed:
            raise RuntimeError("the channel is closed")
        svid = self._source.current()
        live = self._live
        if live is not None and live.svid == svid:
            return live
        fresh = _Live(svid, self._endpoint, self._options)
        self._live = fresh
        if live is not None:
            self._retire(live)
        return fresh

    async def close(self, grace_s: float = 0.0) -> None:
        """Refuse new calls, let open ones finish for `grace_s`, then end them."""
        self._closed = True
        live, self._live = self._live, None
        if live is not None:
            await live.drain(grace_s)
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)

    def _retire(self, live: "_Live") -> None:
        task = asyncio.create_task(live.drain(self._drain_s), name=f"drain channel to {self._endpoint}")
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Raise the KarsError that a failed call stands for instead of `grpc.aio.AioRpcError`."""
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise status.from_rpc_error(failure) from failure


class _Live:
    """One real channel, and the calls that run on it."""

    def __init__(self, svid: Svid, endpoint: str, options: list[tuple[str, Any]]) -> None:
        self.svid = svid
        self.channel = grpc.aio.secure_channel(
            endpoint, channel_credentials(svid), options=options, interceptors=telemetry.client_interceptors()
        )
        self._callables: dict[_Method, Any] = {}
        self._calls: set[Any] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self, method: "_Method", *args: Any, **kwargs: Any) -> Any:
        multi = self._callables.get(method)
        if multi is None:
            multi = self._callables[method] = method.on(self.channel)
        call = multi(*args, **kwargs)
        self._calls.add(call)
        self._idle.clear()
        call.add_done_callback(self._done)
        return call

    def _done(self, call: Any) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Wait for the calls, at most `grace_s`, then close whatever happens."""
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass  # closing cancels what is left
        finally:
            await self.channel.close(None)


class _Method:
    """One method of a stub: called, it starts a call on the live channel."""

    def __init__(self, peer: PeerChannel, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._peer = peer
        self._kind = kind
        self._args = args
        self._kwargs = kwargs

    def on(self, channel: grpc.aio.Channel) -> Any:
        return getattr(channel, self._kind)(*self._args, **self._kwargs)

    def __call__(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        if timeout is None and self._kind in ("unary_unary", "stream_unary"):
            timeout = self._peer.timeout_s
        return self._peer.live().start(self, *args, timeout=timeout, **kwargs)


class _Facade:
    """What generated stubs need of a channel."""

    def __init__(self, peer: PeerChannel) -> None:
        self._peer = peer

    def unary_unary(self, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self._peer, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self._peer, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self._peer, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> _Method:
        return _Method(self._peer, "stream_stream", args, kwargs)


def _options(dns_name: str, idempotent: Collection[str]) -> list[tuple[str, Any]]:
    return [
        # The only name check that a Python client has; the certificate authority gives it to one peer.
        ("grpc.ssl_target_name_override", dns_name),
        ("grpc.default_authority", dns_name),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.use_local_subchannel_pool", 1),  # channels with different certificates share no connection
        ("grpc.service_config", json.dumps(_service_config(idempotent))),
    ]


def _service_config(idempotent: Collection[str]) -> dict[str, Any]:
    names = [dict(zip(("service", "method"), name.split("/"), strict=True)) for name in sorted(idempotent)]
    if not names:
        return {}
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {
        "methodConfig": [{"name": names, "retryPolicy": retry}],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
