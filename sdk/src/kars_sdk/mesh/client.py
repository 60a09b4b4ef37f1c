"""The mesh client: everything between `send` on one side and `inbox` on the other.

One task attaches and reads, one hands in what waits. Received: decrypt, persist, then acknowledge to the
relay and (encrypted) to the sender. Sent: kept until the peer acknowledged. After any end of the attachment
it connects again with jittered back-off; sessions and queues are not touched by that.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kars.mesh.v1 import relay_pb2

from kars_sdk.mesh.directory import Directory, to_statement
from kars_sdk.mesh.errors import (
    MeshError,
    PayloadError,
    StoreError,
    TransportError,
)
from kars_sdk.mesh.exchange import Event, Exchange
from kars_sdk.mesh.inbox import Inbox, Message
from kars_sdk.mesh.incoming import Receiver
from kars_sdk.mesh.names import PeerName, trust_domain
from kars_sdk.mesh.outbox import Item, Outbox
from kars_sdk.mesh.outgoing import Sender
from kars_sdk.mesh.sessions import Sessions
from kars_sdk.mesh.transport import Link, Transport
from kars_sdk.mesh.upkeep import Membership

_LOG = logging.getLogger(__name__)
DEFAULT_TTL_S = 72 * 3600.0
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
_TICK_S = 5.0


@dataclass(frozen=True)
class Sent:
    """A message that is on disk and on its way."""

    item: Item

    async def delivered(self, timeout_s: float | None = None) -> None:
        """Wait until the peer has decrypted and kept it.

        Raises:
            TimeoutError: not yet; it goes on being delivered.
            KnockRefusedError: the peer's policy does not let us in.
            MeshError: it was given up, and why.
        """
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self.item.delivered)


class MeshClient:
    """One agent's connection to the mesh. Use as an async context manager."""

    def __init__(
        self,
        membership: Membership,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.time,
        min_backoff_s: float = MIN_BACKOFF_S,
    ) -> None:
        self._membership = membership
        self._transport = transport
        self._clock = clock
        self._min_backoff_s = min_backoff_s
        self._sessions = membership.sessions
        self._store = membership.store
        self.directory: Directory = membership.directory
        self.inbox = Inbox(self._store, clock)
        self.outbox = Outbox(self._store, clock)
        self._exchange = Exchange(clock)
        self.events: deque[Event] = self._exchange.events
        self._receiver = Receiver(membership, self.inbox, self.outbox, self._exchange)
        self._sender = Sender(membership, self.outbox, self._exchange, min_backoff_s=min_backoff_s)
        self._attached = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> PeerName:
        """Who we are."""
        return self._membership.name

    @property
    def sessions(self) -> Sessions:
        """The sessions, for status and safety numbers."""
        return self._sessions

    async def __aenter__(self) -> Self:
        """Start; returns at once, attached or not."""
        self._task = asyncio.create_task(self._run(), name="mesh-client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; what was not acknowledged stays on disk."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, MeshError):  # told by `attached` and `receive`
                await self._task

    async def attached(self, timeout_s: float | None = None) -> None:
        """Wait until a relay has welcomed us.

        Raises:
            TimeoutError: not in time.
            MeshError: the client has stopped for good, and why.
        """
        waiting = asyncio.create_task(self._attached.wait(), name="mesh-attached")
        try:
            tasks = [waiting] if self._task is None else [waiting, self._task]
            done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TimeoutError("not attached to a relay yet")
            for task in done:
                task.result()
        finally:
            waiting.cancel()

    async def send(self, peer: PeerName, kind: str, body: bytes, *, ttl_s: float = DEFAULT_TTL_S) -> Sent:
        """Send a message; on return it is on disk, and goes out when it can.

        Raises:
            PayloadError: it cannot be sent at all.
        """
        if peer == self.name:
            raise PayloadError("peer_is_self", "a message to oneself does not need the mesh")
        item = self.outbox.add(peer, kind, body, ttl_s=ttl_s)
        self._exchange.wake.set()
        return Sent(item)

    async def receive(
        self, wanted: Callable[[Message], bool] = lambda _: True, *, timeout_s: float
    ) -> Message | None:
        """Take the next message that is wanted, or None when none came in time.

        Raises:
            MeshError: none came, and the client has stopped for good.
        """
        found = await self.inbox.wait(wanted, timeout_s)
        if not found and self._task is not None and self._task.done():
            self._task.result()
        if not found:
            return None
        await self.inbox.mark_read(found[:1])
        return found[0]

    async def _run(self) -> None:
        backoff = self._min_backoff_s
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._membership.ready()
                async with self._transport.attach(self._prove) as link:
                    await self._serve(link)
            except StoreError:
                raise
            except MeshError as exc:  # policy or statement that is not believed may be replaced by a good one
                self._exchange.note("transport", "", exc.reason)
                if getattr(exc, "fatal", False):
                    _LOG.warning("the mesh attachment ended for good: %s", exc.reason)
                    raise
                retry_after_s = getattr(exc, "retry_after_s", 0.0)
                if asyncio.get_running_loop().time() - started > MAX_BACKOFF_S:
                    backoff = self._min_backoff_s
                await asyncio.sleep(max(retry_after_s, random.uniform(backoff / 2, backoff)))  # noqa: S311 - jitter, no secret
                backoff = min(MAX_BACKOFF_S, backoff * 2)
            finally:
                self._attached.clear()

    def _prove(self, hello: relay_pb2.Hello) -> relay_pb2.Connect:
        """Answer a hello; only that of our own trust domain's relay.

        Raises:
            TransportError: `relay_mismatch`.
        """
        expected = f"spiffe://{trust_domain(self.name)}/svc/relay"
        if hello.relay != expected:
            raise TransportError(
                "relay_mismatch", f"{hello.relay[:128]!r} answered, expected {expected}", fatal=True
            )
        return relay_pb2.Connect(
            peer=self.name,
            identity=to_statement(self._membership.statement),
            proof=self._membership.identity.connect_proof(
                nonce=hello.nonce, relay=hello.relay, peer=self.name
            ),
        )

    async def _serve(self, link: Link) -> None:
        self._attached.set()
        self._exchange.wake.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receiver.run(link), name="mesh-receive")
                tasks.create_task(self._sender.run(link), name="mesh-hand-in")
                tasks.create_task(self._keep_up(), name="mesh-upkeep")
        except BaseExceptionGroup as group:
            raise _cause(group) from group

    async def _keep_up(self) -> None:
        """Every few seconds: what waited for a gap, what the registry should have."""
        while True:
            with self._sessions.persisting():
                passed = self.inbox.pass_gaps()
            await self.inbox.release(passed)
            await self._membership.keep_up()
            self._exchange.wake.set()
            await asyncio.sleep(_TICK_S)


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error that ended an attachment; a bug stays a group, with all that is in it."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        exc = pending.pop()
        if isinstance(exc, BaseExceptionGroup):
            pending.extend(exc.exceptions)
        else:
            leaves.append(exc)
    if not all(isinstance(exc, MeshError) for exc in leaves):
        return group
    return max(leaves, key=lambda exc: isinstance(exc, StoreError) or getattr(exc, "fatal", False))
