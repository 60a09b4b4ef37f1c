"""The sparse post-quantum ratchet: every so many messages a fresh ML-KEM-768 secret enters every later key.

It runs beside the Double Ratchet and has a root of its own; a message's key needs both (ADR 0011). One side
offers a KEM key, the other answers with a ciphertext; sides take turns. Both ride inside encrypted messages.

Loss and reordering cannot break it, for one rule: **a side sends in a new epoch only when it knows that the
other can read it**. The offerer knows when the answer came; the answerer when a message of the new epoch
came. Offer and answer are repeated until then, so that losing one costs nothing, and keys of the last epochs
are kept for messages that are late.
"""

import hmac
from collections import OrderedDict
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from kars_sdk.mesh import primitives
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import HandshakeError, MalformedError, SkippedTooFarError

DEFAULT_INTERVAL = 50
"""Messages, sent and received, after which the next epoch is offered."""

KEPT_EPOCHS = 16
_REPEAT = 4
"""An offer or answer that waits rides on the first and then on every fourth message."""

_CONFIRM_BYTES = 16


@dataclass(frozen=True, slots=True)
class Offer:
    """A KEM key for the next epoch."""

    epoch: int
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The ciphertext that makes the next epoch, and proof that its key is the same on both sides."""

    epoch: int
    ciphertext: bytes
    confirmation: bytes


class PostQuantumRatchet:
    """One side's view of the epochs."""

    __slots__ = (
        "_answer", "_attach_in", "_epochs", "_initiator", "_interval", "_offer", "_offer_seed", "_since",
        "epoch",
    )  # fmt: skip

    def __init__(self, root: bytes, *, initiator: bool, interval: int = DEFAULT_INTERVAL) -> None:
        """Start in epoch 0, whose key comes from the handshake."""
        self.epoch = 0
        """The epoch that messages are sent in."""
        self._epochs: OrderedDict[int, bytes] = OrderedDict({0: root})
        self._initiator = initiator
        self._interval = interval
        self._since = 0
        self._attach_in = 0
        self._offer: Offer | None = None
        self._offer_seed = b""
        self._answer: Answer | None = None

    @property
    def sending_key(self) -> bytes:
        """The epoch's key that the next message is sent under."""
        return self._epochs[self.epoch]

    def receiving_key(self, epoch: int) -> bytes:
        """Return the key of a message's epoch.

        Raises:
            SkippedTooFarError: `epoch_unknown`: it is too old, or was never agreed.
        """
        try:
            return self._epochs[epoch]
        except KeyError:
            raise SkippedTooFarError("epoch_unknown", f"no key is kept for epoch {epoch}") from None

    def before_send(self) -> Offer | Answer | None:
        """Count a message that is sent; return what it should carry."""
        self._since += 1
        waiting = self._offer or self._answer
        if waiting is None and self._since > self._interval and self._may_offer():
            self._new_offer()
            waiting = self._offer
        if waiting is None:
            return None
        self._attach_in -= 1
        if self._attach_in >= 0:
            return None
        self._attach_in = _REPEAT - 1
        return waiting

    @property
    def waits(self) -> bool:
        """Whether an offer or an answer of ours is under way."""
        return self._offer is not None or self._answer is not None

    def count(self) -> None:
        """Count an authenticated message of the current epoch that carried nothing."""
        self._since += 1

    def received(self, epoch: int, carried: Offer | Answer | None) -> None:
        """Take note of an *authenticated* message and of what it carried.

        Raises:
            MalformedError: `pq_answer_wrong`: the peer's answer does not fit; the epoch stays.
        """
        self._since += 1
        if epoch > self.epoch:  # the offerer has our answer: it sent in the epoch that we made
            self._enter(epoch)
            self._answer = None
        if isinstance(carried, Offer):
            self._on_offer(carried)
        elif isinstance(carried, Answer):
            self._on_answer(carried)

    def _may_offer(self) -> bool:
        return (self.epoch % 2 == 0) == self._initiator

    def _new_offer(self) -> None:
        key = new_kem_key()
        self._offer_seed = key.private_bytes_raw()
        self._offer = Offer(self.epoch + 1, key.public_key().public_bytes_raw())
        self._attach_in = 0

    def _on_offer(self, offer: Offer) -> None:
        if offer.epoch != self.epoch + 1 or offer.epoch in self._epochs or self._may_offer():
            return  # late, repeated, or not its turn
        try:
            secret, ciphertext = primitives.encapsulate(primitives.KEM_768, offer.public_key)
        except HandshakeError as exc:
            raise MalformedError("pq_offer_invalid", "the offered KEM key is not valid") from exc
        key = next_key(self._epochs[self.epoch], secret, offer, ciphertext)
        self._keep(offer.epoch, key)
        self._answer = Answer(offer.epoch, ciphertext, _confirmation(key))
        self._attach_in = 0

    def _on_answer(self, answer: Answer) -> None:
        offer = self._offer
        if offer is None or answer.epoch != offer.epoch:
            return  # late or repeated
        secret = primitives.decapsulate(primitives.KEM_768, self._offer_seed, answer.ciphertext)
        key = next_key(self._epochs[self.epoch], secret, offer, answer.ciphertext)
        if not hmac.compare_digest(_confirmation(key), answer.confirmation):
            raise MalformedError("pq_answer_wrong", "the answer to our KEM offer does not confirm")
        self._keep(offer.epoch, key)
        self._offer, self._offer_seed = None, b""
        self._enter(offer.epoch)

    def _enter(self, epoch: int) -> None:
        self.epoch = epoch
        self._since = 0

    def _keep(self, epoch: int, key: bytes) -> None:
        self._epochs[epoch] = key
        while len(self._epochs) > KEPT_EPOCHS:
            self._epochs.popitem(last=False)

    def dump(self) -> bytes:
        """Return the state. It is secret."""
        writer = Writer().u8(self._initiator).u32(self._interval).u32(self.epoch).u32(self._since)
        writer.u8(self._attach_in).u8(len(self._epochs))
        for epoch, key in self._epochs.items():
            writer.u32(epoch).raw(key)
        writer.u8(self._offer is not None)
        if self._offer is not None:
            writer.raw(encode(self._offer)).raw(self._offer_seed)
        writer.u8(self._answer is not None)
        if self._answer is not None:
            writer.raw(encode(self._answer))
        return writer.bytes()

    @classmethod
    def load(cls, reader: Reader) -> "PostQuantumRatchet":
        """Take up a state that `dump` returned."""
        ratchet = cls(b"", initiator=reader.flag(), interval=reader.u32())
        ratchet.epoch, ratchet._since, ratchet._attach_in = reader.u32(), reader.u32(), reader.u8()
        ratchet._epochs = OrderedDict((reader.u32(), reader.raw(32)) for _ in range(reader.u8()))
        if reader.flag():
            offer = decode(reader, kind=1)
            ratchet._offer = offer if isinstance(offer, Offer) else None
            ratchet._offer_seed = reader.raw(64)
        if reader.flag():
            answer = decode(reader, kind=2)
            ratchet._answer = answer if isinstance(answer, Answer) else None
        return ratchet


def new_kem_key() -> MLKEM768PrivateKey:
    """Make the key of an offer."""
    return MLKEM768PrivateKey.generate()


def next_key(root: bytes, secret: bytes, offer: Offer, ciphertext: bytes) -> bytes:
    """Return the key of the epoch after the one whose key is `root`."""
    transcript = primitives.sha256(offer.public_key, ciphertext)
    info = b"kars-mesh-v1 epoch ML-KEM-768" + offer.epoch.to_bytes(4, "big") + transcript
    return primitives.hkdf(secret, salt=root, info=info, length=32)


def encode(carried: Offer | Answer) -> bytes:
    """Return the bytes that ride in a message; their length follows from their kind."""
    if isinstance(carried, Offer):
        return Writer().u32(carried.epoch).raw(carried.public_key).bytes()
    return Writer().u32(carried.epoch).raw(carried.ciphertext).raw(carried.confirmation).bytes()


def decode(reader: Reader, *, kind: int) -> Offer | Answer | None:
    """Read what rides in a message: kind 0 nothing, 1 an offer, 2 an answer.

    Raises:
        MalformedError: `pq_kind_unknown`, `truncated`.
    """
    if kind == 0:
        return None
    if kind == 1:
        return Offer(reader.u32(), reader.raw(primitives.MLKEM768_PUBLIC_BYTES))
    if kind == 2:
        return Answer(
            reader.u32(), reader.raw(primitives.MLKEM768_CIPHERTEXT_BYTES), reader.raw(_CONFIRM_BYTES)
        )
    raise MalformedError("pq_kind_unknown", f"post-quantum part {kind} is not known")


def kind_of(carried: Offer | Answer | None) -> int:
    """Return the number that `decode` reads."""
    return 0 if carried is None else 1 if isinstance(carried, Offer) else 2


def _confirmation(key: bytes) -> bytes:
    return primitives.hmac_sha256(key, b"kars-mesh-v1 epoch confirmation")[:_CONFIRM_BYTES]
