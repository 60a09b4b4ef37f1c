"""The PolicyDiscovery service: bundles out, ACKs and NACKs in."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.errors import InvalidInputError, UnavailableError, clean_text
from kars_common.rpc import caller

from kars_controller.api.callers import own_sandbox
from kars_controller.distribution import PolicyPublisher, PolicySessions, Refused
from kars_controller.distribution.sessions import Session

_FIRST_MESSAGE_S = 10.0
_MAX_TEXT = 512

Context = Any


class PolicyDiscoveryServicer(policy_pb2_grpc.PolicyDiscoveryServicer):
    """Serves the newest bundle of the calling sandbox, for as long as it listens."""

    def __init__(self, publisher: PolicyPublisher, sessions: PolicySessions, audit: AuditLog) -> None:
        self._publisher = publisher
        self._sessions = sessions
        self._audit = audit

    async def Watch(  # noqa: N802 - named by the contract
        self, requests: AsyncIterator[policy_pb2.WatchRequest], context: Context
    ) -> AsyncIterator[policy_pb2.WatchResponse]:
        """Stream bundles to a router."""
        subscribe = await _subscription(requests)
        sandbox = own_sandbox(subscribe.sandbox, caller(context))
        self._publisher.raise_floor(sandbox, subscribe.current_version, subscribe.current_digest)
        with self._sessions.open(
            sandbox,
            version=subscribe.current_version,
            digest=subscribe.current_digest[:_MAX_TEXT],
            admin_endpoint=subscribe.admin_endpoint[:_MAX_TEXT],
        ) as session:
            answers = asyncio.create_task(
                self._take_answers(requests, session), name=f"policy answers {sandbox}"
            )
            try:
                async for response in self._bundles(session, answers):
                    yield response
            finally:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)

    async def GetSigningKeys(  # noqa: N802 - named by the contract
        self, _request: policy_pb2.GetSigningKeysRequest, _context: Context
    ) -> policy_pb2.GetSigningKeysResponse:
        """Return the keys that bundles are signed with."""
        keys = [
            policy_pb2.SigningKey(key_id=name, public_key=raw) for name, raw in self._publisher.keys.items()
        ]
        return policy_pb2.GetSigningKeysResponse(keys=keys)

    async def _bundles(
        self, session: Session, answers: asyncio.Task[None]
    ) -> AsyncIterator[policy_pb2.WatchResponse]:
        """Yield each new bundle until the router stops answering."""
        sent = ""
        while not answers.done():
            session.changed.clear()
            published = self._publisher.current(session.sandbox)
            if published is not None and published.digest != sent:
                sent = published.digest
                yield policy_pb2.WatchResponse(bundle=published.signed)
                continue
            changed = asyncio.create_task(session.changed.wait(), name=f"policy change {session.sandbox}")
            try:
                await asyncio.wait({changed, answers}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                await asyncio.gather(changed, return_exceptions=True)
        answers.result()

    async def _take_answers(self, requests: AsyncIterator[policy_pb2.WatchRequest], session: Session) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "ack":
                self._sessions.acknowledged(session, request.ack.version, request.ack.digest[:_MAX_TEXT])
                self._record("policy.acknowledged", session, request.ack.version, request.ack.digest)
            elif kind == "nack":
                nack = request.nack
                refused = Refused(
                    version=nack.version,
                    digest=nack.digest[:_MAX_TEXT],
                    reason=clean_text(nack.reason, 64),
                    message=clean_text(nack.message, _MAX_TEXT),
                )
                self._sessions.refused(session, refused)
                self._record("policy.refused", session, nack.version, nack.digest, refused.reason)
            else:
                raise InvalidInputError("watch_request_invalid", "after subscribe, only ack or nack")

    def _record(self, event: str, session: Session, version: int, digest: str, reason: str = "") -> None:
        fields = {
            "sandbox": str(session.sandbox),
            "version": version,
            "digest": digest[:_MAX_TEXT],
            "reason": reason,
        }
        self._audit.append(event, fields)


async def _subscription(requests: AsyncIterator[policy_pb2.WatchRequest]) -> policy_pb2.Subscribe:
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            first = await anext(aiter(requests), None)
    except TimeoutError as exc:
        raise UnavailableError("subscribe_missing", f"no subscribe within {_FIRST_MESSAGE_S:.0f} s") from exc
    if first is None or first.WhichOneof("message") != "subscribe":
        raise InvalidInputError("watch_request_invalid", "the first message must be subscribe")
    return first.subscribe
