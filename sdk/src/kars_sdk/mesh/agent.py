"""The mesh as an agent uses it: text, JSON, files, groups, roster, from one object.

What frameworks, tools and wrappers build on. It owns the client and answers transfers and group changes by
itself; the application sees messages that are for it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kars_sdk.mesh import files, groups, payloads, transfers
from kars_sdk.mesh.client import MeshClient, Sent
from kars_sdk.mesh.directory import Directory, PeerInfo
from kars_sdk.mesh.errors import IdentityError, MeshError, PayloadError, StoreError
from kars_sdk.mesh.groups import Group, Groups
from kars_sdk.mesh.inbox import Message
from kars_sdk.mesh.names import PeerName, peer_name, short_name
from kars_sdk.mesh.payloads import Json
from kars_sdk.mesh.statements import TrustKeys
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.transfers import Received, Transfers
from kars_sdk.mesh.transport import Registry, Transport
from kars_sdk.mesh.trust import TrustPolicy
from kars_sdk.mesh.upkeep import Membership, Profile

_LOG = logging.getLogger(__name__)
FILE = "file"
"""Kind of the message that tells the application of a file that is whole."""

_NUDGE_EVERY_S = 30.0
_FULL_WAIT_S = 0.2
_GROUP_PATIENCE_S = 60.0
"""How long a message waits for the owner's word about its group."""

_INTERNAL = transfers.KINDS | {groups.UPDATE}


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A message for the application."""

    message: Message
    kind: str
    """`text`, `json`, `file`, `group`, or an application's own."""
    text: str
    """The text; for `json` and `file` the document as JSON."""
    group: str = ""


class MeshAgent:
    """One agent in the mesh. Use as an async context manager."""

    def __init__(
        self,
        *,
        name: PeerName,
        store: Store,
        transport: Transport,
        registry: Registry,
        trust: Callable[[], TrustKeys],
        policy: Callable[[], Awaitable[TrustPolicy]],
        incoming: Path,
        profile: Profile = Profile(),  # noqa: B008 - a frozen value
        max_file_bytes: int = files.DEFAULT_MAX_FILE_BYTES,
        min_backoff_s: float = 1.0,
    ) -> None:
        """Wire one agent; `incoming` is the folder that received files go to."""
        membership = Membership(
            name=name, store=store, directory=Directory(registry), trust=trust, policy=policy, profile=profile
        )
        self.client = MeshClient(membership, transport, min_backoff_s=min_backoff_s)
        self.groups = Groups(store, name)
        self.transfers = Transfers(store, incoming, self._post, max_file_bytes=max_file_bytes)
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> PeerName:
        """Who we are."""
        return self.client.name

    async def __aenter__(self) -> Self:
        """Start the client and the task that answers transfers and groups."""
        await self.client.__aenter__()
        self._task = asyncio.create_task(self._answer(), name="mesh-agent")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; nothing that was accepted is lost."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.transfers.close()
        await self.client.__aexit__(kind, exc, trace)

    async def resolve(self, who: str) -> PeerName:
        """Return the peer that is meant: a full name, or the short name of one peer that we may write to.

        Raises:
            IdentityError: `peer_name_invalid`, `peer_unknown`, `peer_ambiguous`.
            TransportError: the registry could not be asked.
        """
        if who.startswith("spiffe://"):
            return peer_name(who)
        found = [each.peer for each in await self.client.directory.discover() if short_name(each.peer) == who]
        if len(found) > 1:
            raise IdentityError(
                "peer_ambiguous", f"{len(found)} peers are called {who[:64]!r}: use the full name"
            )
        if not found:
            raise IdentityError(
                "peer_unknown", f"no peer that policy lets us write to is called {who[:64]!r}"
            )
        return found[0]

    async def roster(self, capability: str = "") -> list[PeerInfo]:
        """Return peers that we may write to, those with a capability only when one is named."""
        return await self.client.directory.discover(capability)

    async def send_text(self, peer: PeerName, text: str) -> Sent:
        """Send a text."""
        return await self.client.send(peer, payloads.TEXT, payloads.encode_text(text))

    async def send_json(self, peer: PeerName, document: Json) -> Sent:
        """Send a document."""
        return await self.client.send(peer, payloads.JSON, payloads.encode_json(document))

    async def send_file(self, peer: PeerName, path: Path, *, description: str = "") -> bytes:
        """Offer a file; returns the transfer's id for `transfers.finished`."""
        return await self.transfers.offer(peer, path, description=description)

    async def create_group(self, name: str, members: Iterable[PeerName]) -> Group:
        """Make a group and tell its members."""
        group = self.groups.create(name, frozenset(members))
        await self._tell(group, group.members)
        return group

    async def change_group(
        self, group_id: bytes, *, add: Iterable[PeerName] = (), remove: Iterable[PeerName] = ()
    ) -> Group:
        """Change a group of ours and tell everybody whom it concerns."""
        before = self.groups.get(group_id).members
        group = self.groups.change(group_id, add=frozenset(add), remove=frozenset(remove))
        await self._tell(group, before | group.members)
        return group

    async def send_group(self, group_id: bytes, text: str) -> list[Sent]:
        """Send a text to every other member, each in its own session."""
        group = self.groups.get(group_id)
        payloads.encode_text(text)
        body = Groups.encode_text(group, text)
        return [
            await self.client.send(peer, groups.MESSAGE, body) for peer in sorted(group.members - {self.name})
        ]

    async def letters(
        self, wanted: Callable[[Letter], bool] = lambda _: True, *, timeout_s: float = 0
    ) -> list[Letter]:
        """Return unread letters that are wanted, oldest first; waits for the first of them.

        They stay unread until `mark_read`.

        Raises:
            MeshError: the agent has stopped for good, and why.
        """
        if self._task is not None and self._task.done():
            self._task.result()
        found: list[Letter] = []

        def is_wanted(message: Message) -> bool:
            letter = self._letter(message)
            return letter is not None and wanted(letter)

        for message in await self.client.inbox.wait(is_wanted, timeout_s):
            letter = self._letter(message)
            if letter is not None:
                found.append(letter)
        return found

    async def mark_read(self, letters: Iterable[Letter]) -> None:
        """Forget letters that were dealt with."""
        await self.client.inbox.mark_read([letter.message for letter in letters])

    def recently_read(self) -> list[Letter]:
        """Return letters that were read since the start, the last hundred."""
        letters = (self._letter(each) for each in self.client.inbox.recently_read())
        return [letter for letter in letters if letter is not None]

    def _letter(self, message: Message) -> Letter | None:
        """Return a message as the application sees it; None for what is not for it, or breaks a rule."""
        if message.kind in _INTERNAL:
            return None
        try:
            if message.kind == groups.MESSAGE:
                read = self.groups.read_text(message.peer, message.body)
                return Letter(message=message, kind="group", text=read.text, group=read.group.name)
            if message.kind in {payloads.JSON, FILE}:
                payloads.decode_json(message.body)
            return Letter(message=message, kind=message.kind, text=payloads.decode_text(message.body))
        except MeshError:
            return None

    async def _post(self, peer: PeerName, kind: str, body: bytes) -> Sent:
        """Send for a transfer or a group; where the outbox is full, wait until peers have acknowledged."""
        while True:
            try:
                return await self.client.send(peer, kind, body)
            except PayloadError as exc:
                if exc.reason != "outbox_full":
                    raise
            await asyncio.sleep(_FULL_WAIT_S)

    async def _tell(self, group: Group, peers: Iterable[PeerName]) -> None:
        for peer in sorted(set(peers) - {self.name}):
            await self._post(peer, groups.UPDATE, group.encode())

    async def _answer(self) -> None:
        """Handle transfers and group changes in order; forget each after it was handled."""
        await self.transfers.resume()
        while True:
            await self.transfers.nudge()
            for message in await self.client.inbox.wait(self._is_ours, _NUDGE_EVERY_S):
                if not self._is_ours(message):
                    continue  # what was handled just before made it readable
                try:
                    await self._handle(message)
                except StoreError:
                    raise
                except MeshError as exc:
                    _LOG.info("mesh: a message of kind %s was refused: %s", message.kind, exc.reason)
                await self.client.inbox.mark_read([message])

    def _is_ours(self, message: Message) -> bool:
        if message.kind in _INTERNAL:
            return True
        early = message.kind == groups.MESSAGE and time.time() - message.received_at < _GROUP_PATIENCE_S
        return not early and self._letter(message) is None

    async def _handle(self, message: Message) -> None:
        if message.kind == groups.UPDATE:
            self.groups.updated(message.peer, message.body)
        elif message.kind in transfers.KINDS:
            received = await self.transfers.handle(message)
            if received is not None:
                await self._announce(received)
        else:
            raise PayloadError("message_refused", "it is no message that this agent understands")

    async def _announce(self, received: Received) -> None:
        document: dict[str, Json] = {
            "name": received.name,
            "path": str(received.path),
            "size": received.size,
            "sha256": received.sha256,
            "description": received.description,
        }
        await self.client.inbox.add_local(received.peer, FILE, payloads.encode_json(document))
