"""What this agent has sent and its peers have not acknowledged; on disk until then. At least once.

A record is written when the application sends and removed when the *peer* has decrypted and kept the message.
The relay's receipt only says that it need not be handed in again soon.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kars_sdk.mesh import frames
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import MeshError, PayloadError
from kars_sdk.mesh.frames import STREAM_BYTES, Ack, Data
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.store import Store

MAX_ITEMS = 4096
MAX_BYTES = 96 * 1024 * 1024
RESEND_AFTER_S = 60.0
"""What the relay stored and the peer has not acknowledged is sent again after this, then ever later."""
MAX_RESEND_S = 3600.0
_ITEM, _STREAM = "outbox", "stream"


@dataclass(eq=False)
class Item:
    """One message on its way."""

    number: int
    peer: PeerName
    data: Data
    created: float
    expires: float
    delivered: "asyncio.Future[None]"
    not_before: float = 0
    tries: int = 0
    payload: bytes | None = field(default=None, repr=False)
    """Ciphertext that was made in this process and not yet in a receipt; the same id goes with it again."""
    envelope_id: bytes = b""


class Outbox:
    """Messages by the order in which they were sent."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._items: OrderedDict[int, Item] = OrderedDict()
        self._by_peer: dict[tuple[PeerName, bytes, int], Item] = {}
        self._bytes = 0
        self._next = 1
        for name, record in store.items(_ITEM):
            self._enter(_read(int.from_bytes(name, "big"), record))
        if self._items:
            self._next = next(reversed(self._items)) + 1

    def __len__(self) -> int:
        return len(self._items)

    def add(self, peer: PeerName, kind: str, body: bytes, *, ttl_s: float) -> Item:
        """Enter a message; on return it is on disk.

        Raises:
            PayloadError: `outbox_full`, and see `frames.encode`.
        """
        if len(self._items) >= MAX_ITEMS or self._bytes + len(body) > MAX_BYTES:
            raise PayloadError("outbox_full", "too much waits to be acknowledged by peers: send more slowly")
        now = self._clock()
        record = self._store.get(_STREAM, peer.encode())
        stream, number = os.urandom(STREAM_BYTES), 0
        if record is not None:
            stream, number = record[:STREAM_BYTES], int.from_bytes(record[STREAM_BYTES:], "big")
        data = Data(stream, number, int(now * 1000), kind, body)
        item = Item(self._next, peer, data, now, now + ttl_s, asyncio.get_running_loop().create_future())
        encoded = frames.encode(data)
        with self._store.transaction():
            self._store.put(_STREAM, peer.encode(), stream + (number + 1).to_bytes(8, "big"))
            self._store.put(_ITEM, _name(item.number), _write(item, encoded))
        self._next += 1
        self._enter(item)
        return item

    def due(self, peers_waiting: set[PeerName], *, most: int, most_bytes: int) -> list[Item]:
        """Return what may be sent now, in order for each peer; nothing of a peer behind one that waits."""
        now, size, blocked = self._clock(), 0, set(peers_waiting)
        chosen: list[Item] = []
        for item in self._items.values():
            if item.peer in blocked or item.not_before > now:
                if item.tries == 0 or item.payload is not None:
                    blocked.add(item.peer)
                continue
            size += len(item.data.body) + 512
            if chosen and (len(chosen) >= most or size > most_bytes):
                break
            chosen.append(item)
        return chosen

    def next_due(self) -> float | None:
        """Return when something may be sent (again) or expires, or None when nothing waits."""
        return min((min(item.not_before, item.expires) for item in self._items.values()), default=None)

    def stored(self, item: Item) -> None:
        """Note that the relay has it: the peer's acknowledgement is waited for, then it is sent again."""
        item.payload = None
        item.tries += 1
        item.not_before = self._clock() + min(MAX_RESEND_S, RESEND_AFTER_S * 2 ** (item.tries - 1))

    def later(self, item: Item, delay_s: float) -> None:
        """Try again after a while."""
        item.not_before = self._clock() + delay_s

    def again(self, peer: PeerName) -> None:
        """Send everything to a peer again, under whatever session there is."""
        for item in self._items.values():
            if item.peer == peer:
                item.payload, item.not_before, item.tries = None, 0, 0

    def acknowledged(self, peer: PeerName, ack: Ack) -> None:
        """Remove what a peer has kept; inside a transaction."""
        for number in ack.numbers:
            item = self._by_peer.get((peer, ack.stream, number))
            if item is not None:
                self._remove(item)
                if not item.delivered.done():
                    item.delivered.set_result(None)

    def fail(self, item: Item, error: MeshError) -> None:
        """Give a message up and tell whoever waits for it.

        Its number will never come, so later messages go in a new stream: the peer must not wait for it.
        """
        with self._store.transaction():
            self._remove(item)
            self._store.delete(_STREAM, item.peer.encode())
        if not item.delivered.done():
            item.delivered.set_exception(error)
            item.delivered.exception()  # whoever does not wait need not be warned of it

    def of(self, peer: PeerName) -> list[Item]:
        """Return what waits for a peer."""
        return [item for item in self._items.values() if item.peer == peer]

    def expired(self) -> list[Item]:
        """Return what has waited for longer than it may."""
        now = self._clock()
        return [item for item in self._items.values() if item.expires <= now]

    def _enter(self, item: Item) -> None:
        self._items[item.number] = item
        self._by_peer[item.peer, item.data.stream, item.data.number] = item
        self._bytes += len(item.data.body)

    def _remove(self, item: Item) -> None:
        self._store.delete(_ITEM, _name(item.number))
        if self._items.pop(item.number, None) is not None:
            self._by_peer.pop((item.peer, item.data.stream, item.data.number), None)
            self._bytes -= len(item.data.body)


def _name(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _write(item: Item, encoded: bytes) -> bytes:
    return Writer().text(item.peer).u64(int(item.created)).u64(int(item.expires)).raw(encoded).bytes()


def _read(number: int, record: bytes) -> Item:
    reader = Reader(record, what="outbox record", max_bytes=2 * frames.MAX_BODY_BYTES)
    peer, created, expires = peer_name(reader.text(512)), reader.u64(), reader.u64()
    data = frames.decode(reader.rest())
    if not isinstance(data, Data):
        raise TypeError("the outbox holds data only")
    return Item(number, peer, data, created, expires, asyncio.get_running_loop().create_future())
