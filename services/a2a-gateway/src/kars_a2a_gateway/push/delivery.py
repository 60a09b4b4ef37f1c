"""Sends what the outbox holds: in order for each configuration, signed, guarded, again when it failed.

A push was delivered when the target answered 2xx. Anything else is tried again, ever more rarely, until it is
too old; then it is given up, and the log says so. Redirects are answers like any other and are not followed.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from a2a.types import StreamResponse, TaskPushNotificationConfig
from google.protobuf import json_format
from kars_common.agent_cards import CardSigningKey
from kars_common.errors import KarsError, UnavailableError

from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.outgoing.client import GuardedClient
from kars_a2a_gateway.push import outbox
from kars_a2a_gateway.push.outbox import Push
from kars_a2a_gateway.storage.scripts import Database

_LOG = logging.getLogger(__name__)
_AT_ONCE = 32
_MAX_RETRY_S = 300.0
_IDLE_S = 30.0
SIGNATURE_HEADER = "a2a-notification-signature"
TOKEN_HEADER = "x-a2a-notification-token"  # noqa: S105  # the name that the official clients look for


@dataclass(frozen=True, kw_only=True)
class DeliverySettings:
    """Seconds."""

    timeout_s: float
    max_age_s: float
    first_retry_s: float


class PushDelivery:
    """One sender a process; `wake` it when something was queued."""

    def __init__(
        self,
        database: Database,
        client: GuardedClient,
        recorder: Recorder,
        signer: Callable[[], tuple[CardSigningKey, str]],
        settings: DeliverySettings,
        *,
        worker: str,
        shared: bool,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._client = client
        self._recorder = recorder
        self._signer = signer
        self._settings = settings
        self._worker = worker
        self._shared = shared
        self._clock_s = clock_s
        self._wake = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._busy: set[tuple[str, str, str]] = set()

    def wake(self) -> None:
        """Look for due pushes now."""
        self._wake.set()

    async def run(self) -> None:
        """Send for ever."""
        if not self._shared:  # nobody else has this database: whoever held a lease is gone
            await self._database.run(outbox.release_all)
        try:
            while True:
                self._wake.clear()
                pause_s = await self._turn()
                try:
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def _turn(self) -> float:
        """Start what is due; return how long nothing will be."""
        try:
            now_ms = self._now_ms()
            room = _AT_ONCE - len(self._sending)
            lease_ms = int((self._settings.timeout_s + 15) * 1000)
            if room > 0:
                due = await self._database.run(
                    lambda: outbox.take_due(self._worker, now_ms, now_ms + lease_ms, room + len(self._busy)),
                    durable=False,
                )
                for push in due:
                    if (push.agent, push.task_id, push.config_id) not in self._busy:
                        self._start(push)
            next_ms = await self._database.run(outbox.next_due_ms, durable=False)
        except UnavailableError:
            _LOG.warning("pushes wait for the database")
            return 1.0
        if next_ms is None or self._sending:
            return _IDLE_S  # woken when one ends
        return min(_IDLE_S, max(0.05, (next_ms - self._now_ms()) / 1000))

    def _start(self, push: Push) -> None:
        key = (push.agent, push.task_id, push.config_id)
        self._busy.add(key)
        task = asyncio.create_task(self._send(push), name=f"push of {push.task_id[:40]}")
        self._sending.add(task)

        def ended(done: "asyncio.Task[None]") -> None:
            self._sending.discard(done)
            self._busy.discard(key)
            self._wake.set()
            if not done.cancelled() and done.exception() is not None:
                _LOG.error("push failed unexpectedly", exc_info=done.exception())

        task.add_done_callback(ended)

    async def _send(self, push: Push) -> None:
        config = TaskPushNotificationConfig.FromString(push.config)
        try:
            answer = await self._client.request(
                "POST",
                config.url,
                headers=self._headers(push, config),
                content=body_of(push.payload),
                timeout_s=self._settings.timeout_s,
            )
            status, reason = answer.status, f"status_{answer.status}"
        except KarsError as exc:
            status, reason = 0, exc.reason
        if 200 <= status < 300:
            await self._database.run(lambda: outbox.done(push))
            self._recorder.push("delivered", push, {"attempts": push.attempts + 1})
            return
        await self._failed(push, reason)

    async def _failed(self, push: Push, reason: str) -> None:
        now_ms = self._now_ms()
        if now_ms - push.created_ms > self._settings.max_age_s * 1000:
            await self._database.run(lambda: outbox.done(push))
            self._recorder.push("given_up", push, {"reason": reason, "attempts": push.attempts + 1})
            return
        wait_s = min(_MAX_RETRY_S, self._settings.first_retry_s * 2 ** min(push.attempts, 20))
        await self._database.run(lambda: outbox.postpone(push, now_ms + int(wait_s * 1000)))
        if push.attempts == 0:
            self._recorder.push("failed", push, {"reason": reason})

    def _headers(self, push: Push, config: TaskPushNotificationConfig) -> list[tuple[str, str]]:
        headers = [
            ("content-type", "application/a2a+json"),
            ("a2a-version", "1.0"),
            ("user-agent", "kars-a2a-gateway"),
            (SIGNATURE_HEADER, self._signature(push)),
        ]
        if config.token:
            headers.append((TOKEN_HEADER, config.token))
        if config.HasField("authentication"):
            auth = config.authentication
            headers.append(("authorization", f"{auth.scheme} {auth.credentials}".strip()))
        return headers

    def _signature(self, push: Push) -> str:
        """Return a JWS over what identifies this push and over its body's hash, made for this attempt."""
        key, jku = self._signer()
        claims = {
            "iat": int(self._clock_s()),
            "exp": int(self._clock_s()) + 300,
            "jti": f"{push.config_id}-{push.id}",
            "taskId": push.task_id,
            "bodySha256": hashlib.sha256(body_of(push.payload)).hexdigest(),
        }
        return key.sign(orjson.dumps(claims), {"jku": jku})

    def _now_ms(self) -> int:
        return int(self._clock_s() * 1000)


def body_of(payload: bytes) -> bytes:
    """Return the JSON that a target receives for a queued event."""
    return orjson.dumps(json_format.MessageToDict(StreamResponse.FromString(payload)))
