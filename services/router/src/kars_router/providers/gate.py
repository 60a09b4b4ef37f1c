"""The `dispatch` gate: send the call to a model that policy allows, falling back when one fails.

Everything that leaves is written here: the body from checked fields, the
headers from the provider's own recipe. No header of the agent goes out.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import orjson

from kars_router.guardrails.safety import SafetyFloor
from kars_router.inference.output import RefusedAnswerError, provider_error
from kars_router.inference.request import OUTPUT_BOUNDS
from kars_router.inference.sse import EventTooLargeError, SseParser
from kars_router.pipeline.call import Attempt, Call, InferenceCall
from kars_router.pipeline.policy import Model
from kars_router.pipeline.verdicts import ADMIT, Deny, Outcome, Verdict
from kars_router.providers import refusals
from kars_router.providers.config import Provider, ProviderRegistry
from kars_router.providers.health import Health, RetryBudget
from kars_router.providers.upstream import AnswerTooLargeError, Upstream, UpstreamError, UpstreamResponse

_CONNECT_BACKOFF_S = (0.25, 0.75)
_MAX_HONOURED_RETRY_AFTER_S = 2.0
# A number, or a span such as `6m0s`; anything else a provider writes there stays with us.
_AMOUNT = re.compile(r"[0-9][0-9hms.]{0,31}")
_MAX_EVENT_BYTES = 1024 * 1024
_REFRESH_S = 1.0
_DRAIN_S = 0.05
_JSON_HEADERS = (("content-type", "application/json"), ("accept", "application/json"))
_SSE_HEADERS = (("content-type", "application/json"), ("accept", "text/event-stream"))
# What a caller may learn of the provider's own limits.
_PASSED_BACK = (
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)


class DispatchGate:
    """Calls providers. Holds no policy: the models to try come with the call."""

    name = "dispatch"

    def __init__(
        self,
        registry: ProviderRegistry,
        open_upstream: Callable[[Provider], Upstream],
        health: Health,
        *,
        redact: Callable[[str], str],
        on_attempt: Callable[[str, str], None] = lambda _provider, _result: None,
    ) -> None:
        """Take the providers and how to reach them.

        Args:
            registry: configured providers.
            open_upstream: returns a client for a provider; called once for each set of trusted roots.
            health: health of models.
            redact: cleans text of providers before it is shown.
            on_attempt: told (provider, result) of every try, for metrics.
        """
        self._registry = registry
        self._open_upstream = open_upstream
        self._upstreams: dict[bytes | None, Upstream] = {}
        self._health = health
        self._redact = redact
        self._on_attempt = on_attempt
        self._retries = RetryBudget()
        self._refreshed = 0.0

    async def admit(self, call: Call) -> Verdict:
        """Send the call and wait for the head of a 2xx answer."""
        if not isinstance(call, InferenceCall):
            return ADMIT
        self._refresh()
        self._retries.called()
        configured = [model for model in call.models if self._registry.get(model.provider) is not None]
        if not configured:
            return refusals.not_configured()
        last: Deny | None = None
        candidates = self._health.order(configured)
        for position, model in enumerate(candidates):
            provider = self._registry.get(model.provider)
            if provider is None:
                continue
            only = position == len(candidates) - 1
            answer = await self._ask(call, provider, model, retry=only)
            if isinstance(answer, Deny):
                last = answer
                if not refusals.may_fall_back(answer):
                    return answer
                continue
            call.model = model.deployment
            call.answered = True
            call.answer = self._objects(call, answer)
            return ADMIT
        return last or refusals.not_configured()

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Nothing to give back: the answer closes itself."""

    async def close(self) -> None:
        """Close all connections to providers."""
        for upstream in self._upstreams.values():
            await upstream.close()

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._refreshed >= _REFRESH_S:
            self._refreshed = now
            self._registry.refresh()

    def _upstream(self, provider: Provider) -> Upstream:
        upstream = self._upstreams.get(provider.ca_pem)
        if upstream is None:
            upstream = self._upstreams[provider.ca_pem] = self._open_upstream(provider)
        return upstream

    async def _ask(
        self, call: InferenceCall, provider: Provider, model: Model, *, retry: bool
    ) -> UpstreamResponse | Deny:
        """Ask one model, trying again where that is safe: nothing was received, or the provider says when."""
        body = _body(call, provider, model)
        tries = 0
        while True:
            answer, wait_s = await self._once(call, provider, model, body)
            tries += 1
            if wait_s is None or not retry or tries > len(_CONNECT_BACKOFF_S) or not self._retries.take():
                return answer
            pause_s = wait_s or _CONNECT_BACKOFF_S[tries - 1]
            await asyncio.sleep(pause_s * random.uniform(1.0, 1.25))  # noqa: S311 - jitter, not a secret

    async def _once(
        self, call: InferenceCall, provider: Provider, model: Model, body: bytes
    ) -> tuple[UpstreamResponse | Deny, float | None]:
        """Try once; the second value is None if another try is unsafe, else seconds to wait (0: backoff)."""
        headers = (*(_SSE_HEADERS if call.request.stream else _JSON_HEADERS), *provider.headers)
        started = time.monotonic()
        try:
            response = await self._upstream(provider).post(provider.url, headers, provider.credential, body)
        except UpstreamError as exc:
            self._note(call, provider, model, "timeout" if exc.timed_out else "transport")
            self._health.failed(model)
            call.maybe_spent = call.maybe_spent or exc.maybe_received
            return refusals.unreachable(exc), None if exc.maybe_received else 0.0
        except asyncio.CancelledError:
            # The caller hung up while the provider was working: what it did is paid for.
            call.maybe_spent = True
            raise
        status = response.status
        if 200 <= status < 300:
            self._note(call, provider, model, "ok")
            self._health.succeeded(model, time.monotonic() - started)
            call.provider_headers[:] = _limit_headers(response)
            return response, None
        self._note(call, provider, model, str(status))
        if status == 429 or status >= 500:
            self._health.failed(model)
        else:
            self._health.succeeded(model, time.monotonic() - started)
        denial = await self._refusal(call, response)
        call.provider_headers[:] = _limit_headers(response)
        after = denial.retry_after_s
        if status in {429, 503} and after is not None and after <= _MAX_HONOURED_RETRY_AFTER_S:
            return denial, after
        return denial, None

    def _note(self, call: InferenceCall, provider: Provider, model: Model, result: str) -> None:
        call.attempts.append(
            Attempt(
                provider=provider.name, model=model.deployment, credential=provider.fingerprint, result=result
            )
        )
        self._on_attempt(provider.name, result)

    async def _refusal(self, call: InferenceCall, response: UpstreamResponse) -> Deny:
        """Turn an error answer into a denial that shows nothing of the provider's account."""
        document: dict[str, Any] = {}
        try:
            raw = await response.read(refusals.MAX_ERROR_BYTES)
            parsed = orjson.loads(raw)
            if isinstance(parsed, dict):
                document = parsed
        except (UpstreamError, orjson.JSONDecodeError):
            pass  # an unreadable error is told by its status alone
        finally:
            await response.close()
        floor: SafetyFloor = call.in_force.floor
        blocked = floor.check(document) if floor.active else None
        return blocked or refusals.from_answer(
            response.status, document, response.header("retry-after"), self._redact
        )

    async def _objects(
        self, call: InferenceCall, response: UpstreamResponse
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the objects of a 2xx answer, whole or streamed, within the size limit."""
        limit = call.door.max_response_bytes
        kind = (response.header("content-type") or "").partition(";")[0].strip().lower()
        try:
            if call.request.stream:
                if kind != "text/event-stream":
                    raise RefusedAnswerError(
                        provider_error("the provider did not answer with an event stream")
                    )
                async for document in _stream(response, limit):
                    yield document
            else:
                if kind != "application/json":
                    raise RefusedAnswerError(provider_error("the provider did not answer with JSON"))
                yield _object(await response.read(limit))
        except (AnswerTooLargeError, EventTooLargeError):
            raise RefusedAnswerError(refusals.too_large(limit)) from None
        except UpstreamError as exc:
            raise RefusedAnswerError(refusals.unreachable(exc)) from None
        finally:
            await response.close()


async def _stream(response: UpstreamResponse, limit: int) -> AsyncIterator[dict[str, Any]]:
    parser = SseParser(_MAX_EVENT_BYTES)
    size = 0
    chunks = response.chunks()
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise AnswerTooLargeError("the answer is too large", maybe_received=True)
        for data in parser.feed(chunk):
            if data == b"[DONE]":
                await _drain(chunks)
                return
            yield _object(data)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end of a finished body, so that its connection can be used again; give up soon."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in chunks:
                pass
    except (TimeoutError, UpstreamError):
        pass  # the answer is complete; the connection is not kept


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise RefusedAnswerError(provider_error("the provider's answer is not JSON")) from None
    if not isinstance(document, dict):
        raise RefusedAnswerError(provider_error("the provider's answer is not an object"))
    return document


def _body(call: InferenceCall, provider: Provider, model: Model) -> bytes:
    # The bound that was reserved, under the one name that this provider obeys.
    body = {name: value for name, value in call.request.body.items() if name not in OUTPUT_BOUNDS}
    body |= {"model": model.deployment, provider.max_tokens_field: call.max_output}
    if call.request.stream:
        body["stream_options"] = {"include_usage": True}
    return orjson.dumps(body)


def _limit_headers(response: UpstreamResponse) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for name in _PASSED_BACK:
        value = response.header(name)
        if value is not None and _AMOUNT.fullmatch(value):
            found.append((name.encode(), value.encode()))
    return found
