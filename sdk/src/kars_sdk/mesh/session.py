"""One end-to-end encrypted session: Double Ratchet, post-quantum ratchet, sealed headers, padding.

    message  = session id (16) | sealed header (60) | nonce (12) | ciphertext and tag
    header   = ratchet key (32) | previous chain length | message number | epoch
    body     = kind of post-quantum part | that part | length | payload | zeros up to the padding bucket

Both names, both identity keys and the whole handshake are in the associated data of every message. The header
is sealed under a key of the session and direction, bound to the body's tag: it hides counters from the relay,
and a stranger's forgery is refused by one AES-GCM tag, before the ratchet derives anything.

A session is synchronous and belongs to one task. It moves in memory; whoever calls it persists it before the
ciphertext or plaintext leaves (`sessions.Sessions`).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kars_sdk.mesh import padding, pq
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import CloneSuspectedError, ForgedError, MalformedError, ReplayedError
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.pq import PostQuantumRatchet
from kars_sdk.mesh.ratchet import HEADER_BYTES, Ratchet, RatchetMessage
from kars_sdk.mesh.ratchet_parts import NONCE_BYTES, TAG_BYTES

_Decrypt = Callable[[bytes, bytes, bytes | None], bytes]

SESSION_ID_BYTES = 16
MAX_PAYLOAD_BYTES = 1024 * 1024 + 64 * 1024
"""Largest payload of one message; files are cut into smaller chunks."""

_SEALED_HEADER_BYTES = HEADER_BYTES + 4 + TAG_BYTES
MIN_MESSAGE_BYTES = SESSION_ID_BYTES + _SEALED_HEADER_BYTES + NONCE_BYTES + TAG_BYTES
MAX_MESSAGE_BYTES = MIN_MESSAGE_BYTES + MAX_PAYLOAD_BYTES * 9 // 8 + 2048
_REMEMBERED = 64
"""Tags of the last messages, to tell a replay from a peer that uses a number twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionKeys:
    """What a handshake gives."""

    session_id: bytes
    root: bytes
    epoch_root: bytes
    initiator_header_key: bytes
    responder_header_key: bytes
    associated_data: bytes


class Session:
    """One side of a session."""

    __slots__ = (
        "_ad",
        "_open_header",
        "_pq",
        "_ratchet",
        "_receive_header_key",
        "_recent",
        "_seal_header",
        "_send_header_key",
        "created",
        "initiator",
        "knock",
        "peer",
        "peer_key",
        "post_quantum",
        "pq_faults",
        "session_id",
    )  # fmt: skip

    def __init__(
        self,
        *,
        peer: PeerName,
        peer_key: bytes,
        keys: SessionKeys,
        ratchet: Ratchet,
        epochs: PostQuantumRatchet,
        initiator: bool,
        created: float,
        post_quantum: bool,
    ) -> None:
        self.peer = peer
        self.peer_key = peer_key
        self.session_id = keys.session_id
        self.initiator = initiator
        self.created = created
        self.post_quantum = post_quantum
        """Whether the handshake had a KEM in it."""
        self.knock = b""
        """Block that goes with every message until the peer has answered; empty from then on."""
        self.pq_faults = 0
        self._ad = keys.associated_data
        self._ratchet = ratchet
        self._pq = epochs
        mine, theirs = keys.initiator_header_key, keys.responder_header_key
        self._send_header_key, self._receive_header_key = (mine, theirs) if initiator else (theirs, mine)
        self._seal_header = AESGCM(self._send_header_key).encrypt
        self._open_header = AESGCM(self._receive_header_key).decrypt
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()

    @classmethod
    def initiate(
        cls, *, peer: PeerName, peer_key: bytes, keys: SessionKeys, peer_ratchet_key: bytes, payload: bytes,
        created: float, post_quantum: bool, interval: int = pq.DEFAULT_INTERVAL,
    ) -> tuple["Session", bytes]:  # fmt: skip
        """Start as the one who knocks; returns the first message."""
        epochs = PostQuantumRatchet(keys.epoch_root, initiator=True, interval=interval)
        body = _body(payload, epochs.before_send())
        ratchet, message = Ratchet.initiate(
            keys.root, peer_ratchet_key, epochs.sending_key, body, keys.associated_data
        )
        session = cls(
            peer=peer, peer_key=peer_key, keys=keys, ratchet=ratchet, epochs=epochs, initiator=True,
            created=created, post_quantum=post_quantum,
        )  # fmt: skip
        return session, session._wire(message, 0)

    @classmethod
    def accept(
        cls, *, peer: PeerName, peer_key: bytes, keys: SessionKeys, own_ratchet_key: bytes, message: bytes,
        created: float, post_quantum: bool, interval: int = pq.DEFAULT_INTERVAL,
    ) -> tuple["Session", bytes]:  # fmt: skip
        """Start as the one who opens; returns the first payload.

        Raises:
            ForgedError: `header_forged`, `message_forged`.
            MalformedError, SkippedTooFarError, HandshakeError: see `decrypt`.
        """
        open_header = AESGCM(keys.initiator_header_key).decrypt
        header, epoch, ciphertext = _open(open_header, keys.session_id, message)
        epochs = PostQuantumRatchet(keys.epoch_root, initiator=False, interval=interval)
        ratchet, body = Ratchet.accept(
            keys.root,
            own_ratchet_key,
            epochs.receiving_key(epoch),
            RatchetMessage(header, ciphertext),
            keys.associated_data,
        )
        session = cls(
            peer=peer, peer_key=peer_key, keys=keys, ratchet=ratchet, epochs=epochs, initiator=False,
            created=created, post_quantum=post_quantum,
        )  # fmt: skip
        return session, session._received(header, epoch, ciphertext, body)

    @property
    def answered(self) -> bool:
        """Whether the peer has proven that it holds the session."""
        return not self.knock

    @property
    def epoch(self) -> int:
        """The post-quantum epoch that is sent in."""
        return self._pq.epoch

    @property
    def skipped_count(self) -> int:
        """How many keys are kept for messages that have not come."""
        return self._ratchet.skipped_count

    def encrypt(self, payload: bytes) -> bytes:
        """Encrypt one message.

        Raises:
            MalformedError: `payload_too_large`.
            HandshakeError: `session_exhausted`.
        """
        body = _body(payload, self._pq.before_send())
        self._ratchet.aead.epoch_key = self._pq.sending_key
        return self._wire(self._ratchet.encrypt(body, self._ad), self._pq.epoch)

    def decrypt(self, message: bytes) -> bytes:
        """Authenticate and decrypt one message; after an error the session is as before.

        Raises:
            MalformedError: `truncated`, `too_large`, `session_other`; nothing was looked at. Or `body_...`:
                the *peer* wrote nonsense; it is authentic.
            ForgedError: `header_forged`, `message_forged`.
            ReplayedError: `message_replayed`, `message_number_used`.
            CloneSuspectedError: `message_number_reused`.
            SkippedTooFarError: `skipped_too_far`, `epoch_unknown`.
            HandshakeError: `low_order_point`.
        """
        header, epoch, ciphertext = _open(self._open_header, self.session_id, message)
        seen = self._recent.get(header)
        if seen is not None:
            if seen == ciphertext[-TAG_BYTES:]:
                raise ReplayedError("message_replayed", "this message was handled before")
            raise CloneSuspectedError(
                "message_number_reused",
                f"{self.peer} used a message number twice: its state was copied or rolled back",
            )
        self._ratchet.aead.epoch_key = self._pq.receiving_key(epoch)
        body = self._ratchet.decrypt(RatchetMessage(header, ciphertext), self._ad)
        return self._received(header, epoch, ciphertext, body)

    def _received(self, header: bytes, epoch: int, ciphertext: bytes, body: bytes) -> bytes:
        self.knock = b""
        self._recent[header] = ciphertext[-TAG_BYTES:]
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        if (
            not body[0] and not self._pq.waits and epoch == self._pq.epoch
        ):  # the common case, without a reader
            self._pq.count()
            return _payload(body, 1)
        reader = Reader(body, what="body", max_bytes=MAX_MESSAGE_BYTES)
        carried = pq.decode(reader, kind=reader.u8())
        try:
            self._pq.received(epoch, carried)
        except MalformedError:
            self.pq_faults += 1  # the payload is authentic; the epoch stays as it is
        return _payload(body, len(body) - len(reader.rest()))

    def _wire(self, message: RatchetMessage, epoch: int) -> bytes:
        ciphertext = message.ciphertext
        sealed = self._seal_header(
            ciphertext[:NONCE_BYTES],
            message.header + epoch.to_bytes(4, "big"),
            self.session_id + ciphertext[-TAG_BYTES:],
        )
        return self.session_id + sealed + ciphertext

    def dump(self) -> bytes:
        """Return the state. It is secret."""
        writer = Writer().u8(1).text(self.peer).raw(self.peer_key).raw(self.session_id)
        writer.u8(self.initiator).u64(int(self.created * 1000)).u8(self.post_quantum).variable(self.knock)
        writer.raw(self._ad).raw(self._send_header_key).raw(self._receive_header_key)
        writer.variable(self._ratchet.dump()).variable(self._pq.dump()).u8(len(self._recent))
        for header, tag in self._recent.items():
            writer.raw(header).raw(tag)
        return writer.bytes()

    @classmethod
    def load(cls, data: bytes) -> "Session":
        """Take up a state that `dump` returned."""
        reader = Reader(data, what="session state", max_bytes=256 * 1024)
        if reader.u8() != 1:
            raise MalformedError("state_version", "the session was written by another version")
        peer, peer_key = peer_name(reader.text(512)), reader.raw(32)
        session_id, initiator = reader.raw(SESSION_ID_BYTES), reader.flag()
        created, post_quantum = reader.u64() / 1000, reader.flag()
        knock, associated_data = reader.variable(16 * 1024), reader.raw(32)
        own, theirs = reader.raw(32), reader.raw(32)
        ratchet = Ratchet.load(reader.variable(64 * 1024))
        epochs = PostQuantumRatchet.load(
            Reader(reader.variable(16 * 1024), what="epochs", max_bytes=16 * 1024)
        )
        session = cls(
            peer=peer, peer_key=peer_key, ratchet=ratchet, epochs=epochs, initiator=initiator,
            created=created, post_quantum=post_quantum,
            keys=SessionKeys(
                session_id=session_id, root=b"", epoch_root=b"", associated_data=associated_data,
                initiator_header_key=own if initiator else theirs,
                responder_header_key=theirs if initiator else own,
            ),
        )  # fmt: skip
        session.knock = knock
        for _ in range(reader.u8()):
            header = reader.raw(HEADER_BYTES)
            session._recent[header] = reader.raw(TAG_BYTES)
        reader.end()
        return session


def session_id_of(message: bytes) -> bytes:
    """Return which session a message claims to belong to.

    Raises:
        MalformedError: `truncated`, `too_large`.
    """
    _check_length(message)
    return message[:SESSION_ID_BYTES]


def _check_length(message: bytes) -> None:
    if len(message) < MIN_MESSAGE_BYTES:
        raise MalformedError("truncated", f"a message has at least {MIN_MESSAGE_BYTES} bytes")
    if len(message) > MAX_MESSAGE_BYTES:
        raise MalformedError("too_large", f"a message has at most {MAX_MESSAGE_BYTES} bytes")


def _open(open_header: _Decrypt, session_id: bytes, message: bytes) -> tuple[bytes, int, bytes]:
    _check_length(message)
    if message[:SESSION_ID_BYTES] != session_id:
        raise MalformedError("session_other", "the message belongs to another session")
    border = SESSION_ID_BYTES + _SEALED_HEADER_BYTES
    ciphertext = message[border:]
    try:
        header = open_header(
            ciphertext[:NONCE_BYTES],
            message[SESSION_ID_BYTES:border],
            session_id + ciphertext[-TAG_BYTES:],
        )
    except InvalidTag as exc:
        raise ForgedError("header_forged", "the header does not authenticate in this session") from exc
    return header[:HEADER_BYTES], int.from_bytes(header[HEADER_BYTES:], "big"), ciphertext


def _body(payload: bytes, carried: pq.Offer | pq.Answer | None) -> bytes:
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise MalformedError("payload_too_large", f"a payload has at most {MAX_PAYLOAD_BYTES} bytes")
    zeros = bytes(padding.padded_length(length) - length)
    if carried is None:
        return b"".join((b"\0", length.to_bytes(4, "big"), payload, zeros))
    part = pq.encode(carried)
    return b"".join((bytes((pq.kind_of(carried),)), part, length.to_bytes(4, "big"), payload, zeros))


def _payload(body: bytes, at: int) -> bytes:
    length = int.from_bytes(body[at : at + 4], "big")
    end = at + 4 + length
    if len(body) < at + 4 or end > len(body):
        raise MalformedError("body_truncated", "the peer's message announces more than it holds")
    if body.count(0, end) != len(body) - end:
        raise MalformedError("body_padding", "the peer's padding is not zero")
    return body[at + 4 : end]
