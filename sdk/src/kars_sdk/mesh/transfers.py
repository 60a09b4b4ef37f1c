"""The conversation of a file transfer, on top of the client. Its state is on disk; restarts go on."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from kars_sdk.mesh import files
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import MeshError, PayloadError
from kars_sdk.mesh.files import Incoming, Manifest
from kars_sdk.mesh.inbox import Message
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.store import Store

OFFER, REQUEST, CHUNK, END = "file/offer", "file/request", "file/chunk", "file/end"
KINDS = frozenset({OFFER, REQUEST, CHUNK, END})
MAX_TRANSFERS = 32
"""Received at once from all peers together; one more offer is refused."""
NUDGE_AFTER_S = 60.0
FORGET_AFTER_S = 7 * 86400.0
_SENDING, _RECEIVING = "file.out", "file.in"

SendMessage = Callable[[PeerName, str, bytes], Awaitable[object]]


@dataclass(frozen=True, kw_only=True)
class Received:
    """A file that is whole."""

    peer: PeerName
    path: Path
    name: str
    size: int
    sha256: str
    description: str


@dataclass(frozen=True)
class _Sending:
    peer: PeerName
    path: Path
    offered: Manifest


class Transfers:
    """All transfers of this agent."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        send: SendMessage,
        *,
        max_file_bytes: int = files.DEFAULT_MAX_FILE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._folder = folder
        self._send = send
        self._max_file_bytes = max_file_bytes
        self._clock = clock
        self._incoming: dict[tuple[PeerName, bytes], Incoming] = {}
        self._progress: dict[tuple[PeerName, bytes], float] = {}
        self._outstanding: dict[tuple[PeerName, bytes], set[int]] = {}
        self._ended: dict[bytes, asyncio.Future[str]] = {}

    async def offer(self, peer: PeerName, path: Path, *, description: str = "") -> bytes:
        """Offer a file; the peer takes it when it can. Returns the transfer's id.

        Raises:
            PayloadError: see `files.manifest`.
        """
        offered = await asyncio.to_thread(
            files.manifest, path, description=description, max_bytes=self._max_file_bytes
        )
        place = await asyncio.to_thread(path.resolve)
        record = Writer().text(peer).text(str(place)).u64(int(self._clock())).raw(offered.encode())
        with self._store.transaction():
            self._store.put(_SENDING, offered.transfer_id, record.bytes())
        self._ended[offered.transfer_id] = asyncio.get_running_loop().create_future()
        await self._send(peer, OFFER, offered.encode())
        return offered.transfer_id

    async def finished(self, transfer_id: bytes, timeout_s: float) -> str:
        """Wait for the peer's word about a file: `received`, or why not.

        Raises:
            TimeoutError: none yet; the transfer goes on.
        """
        ended = self._ended.setdefault(transfer_id, asyncio.get_running_loop().create_future())
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(ended)

    async def resume(self) -> None:
        """After a restart: ask again for what is missing, forget what is too old."""
        limit = self._clock() - FORGET_AFTER_S
        for kind in (_SENDING, _RECEIVING):
            for name, record in self._store.items(kind):
                reader = Reader(record, what="transfer record", max_bytes=1 << 20)
                peer, _, began = peer_name(reader.text(512)), reader.text(4096), reader.u64()
                if began < limit:
                    with self._store.transaction():
                        self._store.delete(kind, name)
                elif kind == _RECEIVING:
                    await self._open(peer, Manifest.decode(reader.rest()))

    async def nudge(self) -> None:
        """Ask again where nothing has come for a while: the peer may have lost the question."""
        now = self._clock()
        for key, incoming in list(self._incoming.items()):
            if now - self._progress.get(key, now) >= NUDGE_AFTER_S:
                self._outstanding.pop(key, None)
                await self._next(key[0], incoming)

    def close(self) -> None:
        """Stop; what was received stays for `resume`."""
        for incoming in self._incoming.values():
            incoming.close()
        self._incoming.clear()

    async def handle(self, message: Message) -> Received | None:
        """Handle one message of a transfer. Repeating it does no harm. Returns a file that became whole.

        Raises:
            MeshError: the peer sent what it must not; the message can be forgotten.
        """
        if message.kind == OFFER:
            return await self._offered(message.peer, message.body)
        if message.kind == CHUNK:
            return await self._chunk(message.peer, message.body)
        if message.kind == REQUEST:
            await self._requested(message.peer, message.body)
        else:
            self._end(message.peer, message.body)
        return None

    async def _offered(self, peer: PeerName, body: bytes) -> Received | None:
        offered = Manifest.decode(body)
        if (peer, offered.transfer_id) in self._incoming:
            return None
        reason = ""
        if offered.size > self._max_file_bytes:
            reason = "file_too_large"
        elif len(self._incoming) >= MAX_TRANSFERS:
            reason = "too_many_transfers"
        if reason:
            await self._send(peer, END, files.encode_end(offered.transfer_id, reason))
            raise PayloadError(reason, f"a file of {offered.size} bytes offered by {peer} was refused")
        record = Writer().text(peer).text("").u64(int(self._clock())).raw(offered.encode()).bytes()
        with self._store.transaction():
            self._store.put(_RECEIVING, _key(peer, offered.transfer_id), record)
        return await self._open(peer, offered)

    async def _open(self, peer: PeerName, offered: Manifest) -> Received | None:
        incoming = await asyncio.to_thread(Incoming, self._folder, offered)
        self._incoming[peer, offered.transfer_id] = incoming
        return await self._next(peer, incoming)

    async def _chunk(self, peer: PeerName, body: bytes) -> Received | None:
        transfer_id, index, chunk = files.decode_chunk(body)
        incoming = self._incoming.get((peer, transfer_id))
        if incoming is None:
            return None  # late: the file is whole, or was given up
        try:
            await asyncio.to_thread(incoming.write, index, chunk)
        except PayloadError as exc:
            await self._give_up(peer, incoming, exc.reason)
            raise
        self._progress[peer, transfer_id] = self._clock()
        outstanding = self._outstanding.get((peer, transfer_id), set())
        outstanding.discard(index)
        if len(outstanding) > files.WINDOW // 2 and not incoming.complete:
            return None
        return await self._next(peer, incoming)

    async def _next(self, peer: PeerName, incoming: Incoming) -> Received | None:
        offered = incoming.offered
        key = (peer, offered.transfer_id)
        if incoming.complete:
            return await self._finish(peer, incoming)
        outstanding = self._outstanding.setdefault(key, set())
        wanted = [
            index for index in incoming.missing(files.WINDOW + len(outstanding)) if index not in outstanding
        ][: files.WINDOW - len(outstanding)]
        if wanted:
            self._progress[key] = self._clock()
            outstanding.update(wanted)
            await self._send(peer, REQUEST, files.encode_request(offered.transfer_id, wanted))
        return None

    async def _finish(self, peer: PeerName, incoming: Incoming) -> Received:
        offered = incoming.offered
        try:
            path = await asyncio.to_thread(incoming.finish)
        except PayloadError as exc:
            self._forget(peer, offered.transfer_id)
            await self._send(peer, END, files.encode_end(offered.transfer_id, exc.reason))
            raise
        self._forget(peer, offered.transfer_id)
        await self._send(peer, END, files.encode_end(offered.transfer_id, "received"))
        return Received(
            peer=peer, path=path, name=offered.name, size=offered.size, sha256=offered.sha256.hex(),
            description=offered.description,
        )  # fmt: skip

    async def _give_up(self, peer: PeerName, incoming: Incoming, reason: str) -> None:
        incoming.abandon()
        self._forget(peer, incoming.offered.transfer_id)
        await self._send(peer, END, files.encode_end(incoming.offered.transfer_id, reason))

    def _forget(self, peer: PeerName, transfer_id: bytes) -> None:
        self._incoming.pop((peer, transfer_id), None)
        self._outstanding.pop((peer, transfer_id), None)
        self._progress.pop((peer, transfer_id), None)
        with self._store.transaction():
            self._store.delete(_RECEIVING, _key(peer, transfer_id))

    async def _requested(self, peer: PeerName, body: bytes) -> None:
        transfer_id, wanted = files.decode_request(body)
        sending = self._sending(transfer_id)
        if sending is None or sending.peer != peer:
            raise PayloadError("transfer_unknown", f"{peer} asks for a file that was not offered to it")
        for index in wanted:
            try:
                chunk = await asyncio.to_thread(files.read_chunk, sending.path, sending.offered, index)
            except MeshError as exc:
                self._done(transfer_id, exc.reason)
                await self._send(peer, END, files.encode_end(transfer_id, exc.reason))
                raise
            await self._send(peer, CHUNK, files.encode_chunk(transfer_id, index, chunk))

    def _end(self, peer: PeerName, body: bytes) -> None:
        transfer_id, reason = files.decode_end(body)
        sending = self._sending(transfer_id)
        if sending is not None and sending.peer == peer:
            self._done(transfer_id, reason)
        incoming = self._incoming.get((peer, transfer_id))
        if incoming is not None:
            incoming.abandon()
            self._forget(peer, transfer_id)

    def _done(self, transfer_id: bytes, reason: str) -> None:
        with self._store.transaction():
            self._store.delete(_SENDING, transfer_id)
        ended = self._ended.get(transfer_id)
        if ended is not None and not ended.done():
            ended.set_result(reason)

    def _sending(self, transfer_id: bytes) -> _Sending | None:
        record = self._store.get(_SENDING, transfer_id)
        if record is None:
            return None
        reader = Reader(record, what="transfer record", max_bytes=1 << 20)
        peer, path, _ = (
            peer_name(reader.text(512)),
            Path(reader.text(os.pathconf("/", "PC_PATH_MAX"))),
            reader.u64(),
        )
        return _Sending(peer, path, Manifest.decode(reader.rest()))


def _key(peer: PeerName, transfer_id: bytes) -> bytes:
    return transfer_id + peer.encode()
