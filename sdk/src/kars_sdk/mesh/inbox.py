"""What peers have sent and the application has not taken. Each message once, in order for each sender.

The sender numbers its messages. One that came before is a duplicate and is only acknowledged again. One that
comes early waits on disk for those before it; when they do not come within a while, or too many wait, the gap
is passed over, and what comes late is delivered late rather than lost.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from kars_sdk.mesh import frames
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.frames import Data
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.store import Store

MAX_UNREAD, MAX_UNREAD_BYTES = 5000, 128 * 1024 * 1024
MAX_HELD, MAX_HELD_BYTES = 64, 8 * 1024 * 1024
MAX_STREAMS = 8
"""Streams of one peer that are remembered; the oldest is forgotten with what it holds."""
GAP_PATIENCE_S = 30.0
MAX_MISSING = 512
KEPT_READ = 100
_MESSAGE, _ORDER, _HELD, _NEXT, _STREAMS = "inbox", "order", "held", "inbox.next", "streams"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a peer."""

    number: int
    """Of this inbox; names the message to `mark_read`."""
    peer: PeerName
    kind: str
    body: bytes
    sent_at: float
    """By the sender's clock."""
    received_at: float

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")


@dataclass
class _Order:
    """Where a stream stands."""

    expected: int
    missing: set[int]
    held: dict[int, tuple[float, int]]
    """Since when each early message waits, and its size."""

    @property
    def held_bytes(self) -> int:
        return sum(size for _, size in self.held.values())

    def dump(self) -> bytes:
        writer = Writer().u64(self.expected).u32(len(self.missing))
        for number in sorted(self.missing):
            writer.u64(number)
        writer.u32(len(self.held))
        for number, (since, size) in self.held.items():
            writer.u64(number).u64(int(since)).u32(size)
        return writer.bytes()

    @classmethod
    def load(cls, record: bytes | None) -> "_Order":
        if record is None:
            return cls(0, set(), {})
        reader = Reader(record, what="order record", max_bytes=64 * 1024)
        expected = reader.u64()
        missing = {reader.u64() for _ in range(reader.u32())}
        held = {reader.u64(): (float(reader.u64()), reader.u32()) for _ in range(reader.u32())}
        return cls(expected, missing, held)


class Inbox:
    """Messages by the order in which they may be read."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._unread: OrderedDict[int, Message] = OrderedDict()
        self._read: deque[Message] = deque(maxlen=KEPT_READ)
        self._changed = asyncio.Condition()
        self._waiting: set[bytes] = {name for name, record in store.items(_ORDER) if _Order.load(record).held}
        for name, record in store.items(_MESSAGE):
            message = _load(int.from_bytes(name, "big"), record)
            self._unread[message.number] = message
        self._unread_bytes = sum(len(message.body) for message in self._unread.values())
        self._next = int.from_bytes(store.get(_NEXT, b"") or b"", "big") + 1

    @property
    def full(self) -> bool:
        """Whether nothing more is taken from the relay until the application reads."""
        return len(self._unread) >= MAX_UNREAD or self._unread_bytes >= MAX_UNREAD_BYTES

    def accept(self, peer: PeerName, data: Data) -> list[Message]:
        """Take in a message; inside a transaction. Returns what may be read now, for `release`."""
        key = peer.encode() + b"\0" + data.stream
        record = self._store.get(_ORDER, key)
        if record is None:
            self._new_stream(peer, data.stream)
        order = _Order.load(record)
        if data.number in order.missing:
            order.missing.discard(data.number)
            self._store.put(_ORDER, key, order.dump())
            return [self._keep(peer, data)]
        if data.number < order.expected or data.number in order.held:
            return []  # a duplicate
        if data.number > order.expected:
            if data.number - order.expected > MAX_MISSING:
                return self._restart(key, order, peer, data)
            self._store.put(_HELD, key + data.number.to_bytes(8, "big"), frames.encode(data))
            order.held[data.number] = (self._clock(), len(data.body))
            self._waiting.add(key)
            too_much = len(order.held) > MAX_HELD or order.held_bytes > MAX_HELD_BYTES
            return self._advance(key, peer, order, force=too_much)
        order.expected += 1
        released = [self._keep(peer, data)]
        return released + self._advance(key, peer, order, force=False)

    async def add_local(self, peer: PeerName, kind: str, body: bytes) -> None:
        """Tell the application something about a peer that did not come as one message: a whole file."""
        with self._store.transaction():
            message = self._keep(peer, Data(b"", 0, int(self._clock() * 1000), kind, body))
        await self.release([message])

    def pass_gaps(self) -> list[Message]:
        """Release what has waited for longer than patience has; inside a transaction."""
        released: list[Message] = []
        for key in list(self._waiting):
            order = _Order.load(self._store.get(_ORDER, key))
            if order.held and self._clock() - min(order.held.values())[0] >= GAP_PATIENCE_S:
                peer = peer_name(key[: -1 - frames.STREAM_BYTES].decode())
                released += self._advance(key, peer, order, force=True)
        return released

    async def release(self, messages: list[Message]) -> None:
        """Let the application read messages that are on disk now."""
        if messages:
            async with self._changed:
                for message in messages:
                    self._unread[message.number] = message
                    self._unread_bytes += len(message.body)
                self._changed.notify_all()

    async def wait(self, wanted: Callable[[Message], bool], timeout_s: float) -> list[Message]:
        """Return unread messages that are wanted; waits for the first. Empty when none came in time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: any(wanted(each) for each in self._unread.values()))
        except TimeoutError:
            return []
        return [each for each in self._unread.values() if wanted(each)]

    async def wait_for_room(self) -> None:
        """Wait until the application has read enough."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.full)

    def unread(self) -> list[Message]:
        """Return unread messages, oldest first."""
        return list(self._unread.values())

    def recently_read(self) -> list[Message]:
        """Return the last messages that were read, oldest first; not kept across restarts."""
        return list(self._read)

    async def mark_read(self, messages: list[Message]) -> None:
        """Forget messages that the application has taken."""
        with self._store.transaction():
            for message in messages:
                self._store.delete(_MESSAGE, message.number.to_bytes(8, "big"))
        async with self._changed:
            for message in messages:
                if self._unread.pop(message.number, None) is not None:
                    self._unread_bytes -= len(message.body)
                    self._read.append(message)
            self._changed.notify_all()

    def _new_stream(self, peer: PeerName, stream: bytes) -> None:
        """Remember one more stream of a peer. A peer that begins ever new ones fills no disk."""
        record = self._store.get(_STREAMS, peer.encode()) or b""
        streams = [record[at : at + frames.STREAM_BYTES] for at in range(0, len(record), frames.STREAM_BYTES)]
        while len(streams) >= MAX_STREAMS:
            key = peer.encode() + b"\0" + streams.pop(0)
            for number in _Order.load(self._store.get(_ORDER, key)).held:
                self._store.delete(_HELD, key + number.to_bytes(8, "big"))
            self._store.delete(_ORDER, key)
            self._waiting.discard(key)
        self._store.put(_STREAMS, peer.encode(), b"".join([*streams, stream]))
        self._store.put(_ORDER, peer.encode() + b"\0" + stream, _Order(0, set(), {}).dump())

    def _advance(self, key: bytes, peer: PeerName, order: _Order, *, force: bool) -> list[Message]:
        released: list[Message] = []
        while order.held and (order.expected in order.held or force):
            if order.expected not in order.held:
                first = min(order.held)
                order.missing.update(range(order.expected, first))
                order.expected = first
                while len(order.missing) > MAX_MISSING:
                    order.missing.discard(min(order.missing))
                force = False
            name = key + order.expected.to_bytes(8, "big")
            record = self._store.get(_HELD, name)
            data = frames.decode(record) if record is not None else None
            if isinstance(data, Data):
                released.append(self._keep(peer, data))
            self._store.delete(_HELD, name)
            order.held.pop(order.expected)
            order.expected += 1
        if not order.held:
            self._waiting.discard(key)
        self._store.put(_ORDER, key, order.dump())
        return released

    def _restart(self, key: bytes, order: _Order, peer: PeerName, data: Data) -> list[Message]:
        """A number far ahead: what is between is given up, not held for."""
        released: list[Message] = []
        while order.held:
            released += self._advance(key, peer, order, force=True)
        order.expected = data.number + 1
        self._store.put(_ORDER, key, order.dump())
        return [*released, self._keep(peer, data)]

    def _keep(self, peer: PeerName, data: Data) -> Message:
        message = Message(
            number=self._next, peer=peer, kind=data.kind, body=data.body, sent_at=data.sent_at_ms / 1000,
            received_at=self._clock(),
        )  # fmt: skip
        self._next += 1
        stored = frames.encode(replace(data, stream=bytes(frames.STREAM_BYTES), number=0))
        record = Writer().text(peer).u64(int(message.received_at * 1000)).raw(stored).bytes()
        self._store.put(_MESSAGE, message.number.to_bytes(8, "big"), record)
        self._store.put(_NEXT, b"", message.number.to_bytes(8, "big"))
        return message


def _load(number: int, record: bytes) -> Message:
    reader = Reader(record, what="inbox record", max_bytes=2 * frames.MAX_BODY_BYTES)
    peer, received = peer_name(reader.text(512)), reader.u64() / 1000
    data = frames.decode(reader.rest())
    if not isinstance(data, Data):
        raise TypeError("the inbox holds data only")
    return Message(
        number=number, peer=peer, kind=data.kind, body=data.body, sent_at=data.sent_at_ms / 1000,
        received_at=received,
    )  # fmt: skip
