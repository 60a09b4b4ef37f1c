"""The Double Ratchet on the `doubleratchet` package, with its slow spots replaced at its extension points.

The package keeps the state machine: chains, turns, skipped keys, "nothing moves before the tag is checked".
Ours are its parts (`ratchet_parts`) and two short paths (encrypt; decrypt of the message that is next) that
do exactly what the package does, without its coroutines. A test holds both against the package's own way,
byte for byte. This module and the parts are the only ones that know private names of the package; its version
is bounded for that reason.
"""
# ruff: noqa: SLF001

import struct
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import doubleratchet
from doubleratchet import AuthenticationFailedException, DoSProtectionException, DuplicateMessageException
from doubleratchet.models import (
    DiffieHellmanRatchetModel,
    DoubleRatchetModel,
    KDFChainModel,
    SkippedMessageKeyModel,
    SymmetricKeyRatchetModel,
)
from doubleratchet.types import EncryptedMessage, Header

from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import ForgedError, HandshakeError, ReplayedError, SkippedTooFarError
from kars_sdk.mesh.ratchet_parts import MAX_SKIP, Aead, Hellman, PrivateKey, configuration, digest, now

MAX_CHAIN = 1 << 31
_HEADER = struct.Struct(">32sII")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class RatchetMessage:
    """A header in clear, and nonce with ciphertext."""

    header: bytes
    ciphertext: bytes

    def _library(self) -> EncryptedMessage:
        return EncryptedMessage(Header(*_HEADER.unpack(self.header)), self.ciphertext)


class Ratchet(doubleratchet.DoubleRatchet):
    """One Double Ratchet. Synchronous; not for several threads."""

    _DoubleRatchet__diffie_hellman_ratchet: Hellman
    _DoubleRatchet__skipped_message_keys: OrderedDict[tuple[bytes, int], bytes]
    aead: Aead

    @classmethod
    def initiate(
        cls,
        secret: bytes,
        peer_ratchet_key: bytes,
        epoch_key: bytes,
        plaintext: bytes,
        associated_data: bytes,
    ) -> tuple["Ratchet", RatchetMessage]:
        """Start as the one who writes first; returns the first message."""
        aead = Aead()
        aead.epoch_key = epoch_key
        ratchet, message = now(
            cls.encrypt_initial_message(
                **configuration(aead),
                shared_secret=secret,
                recipient_ratchet_pub=peer_ratchet_key,
                message=plaintext,
                associated_data=associated_data,
            )
        )
        ratchet.aead = aead
        return ratchet, RatchetMessage(_HEADER.pack(*message.header), message.ciphertext)

    @classmethod
    def accept(
        cls,
        secret: bytes,
        own_ratchet_key: bytes,
        epoch_key: bytes,
        message: RatchetMessage,
        associated_data: bytes,
    ) -> tuple["Ratchet", bytes]:
        """Start as the one who is written to; returns the first plaintext.

        Raises:
            ForgedError: `message_forged`.
            SkippedTooFarError: `skipped_too_far`.
            HandshakeError: `low_order_point`.
        """
        aead = Aead()
        aead.epoch_key = epoch_key
        try:
            ratchet, plaintext = now(
                cls.decrypt_initial_message(
                    **configuration(aead),
                    shared_secret=secret,
                    own_ratchet_priv=own_ratchet_key,
                    message=message._library(),
                    associated_data=associated_data,
                )
            )
        except AuthenticationFailedException as exc:
            raise _forged() from exc
        except DoSProtectionException as exc:
            raise _too_far() from exc
        ratchet.aead = aead
        return ratchet, plaintext

    @staticmethod
    def _build_associated_data(associated_data: bytes, header: Header) -> bytes:
        return associated_data + _HEADER.pack(*header)

    def encrypt(self, plaintext: bytes, associated_data: bytes) -> RatchetMessage:
        """Encrypt the next message; the state has moved when this returns."""
        hellman = self._DoubleRatchet__diffie_hellman_ratchet
        symmetric = hellman._DiffieHellmanRatchet__symmetric_key_ratchet
        chain = symmetric._SymmetricKeyRatchet__sending_chain
        if chain is None or chain._KDFChain__length >= MAX_CHAIN:
            raise HandshakeError(
                "session_exhausted", "a chain of this session is used up: start a new session"
            )
        key = chain._KDFChain__key
        header = _HEADER.pack(
            PrivateKey.of(hellman._DiffieHellmanRatchet__own_ratchet_priv).public,
            symmetric._SymmetricKeyRatchet__previous_sending_chain_length or 0,
            chain._KDFChain__length,
        )
        message_key = digest(key, b"\x01", "sha256")
        ciphertext = self.aead.seal(plaintext, message_key, associated_data + header)
        chain._KDFChain__key = digest(key, b"\x02", "sha256")
        chain._KDFChain__length += 1
        return RatchetMessage(header, ciphertext)

    def decrypt(self, message: RatchetMessage, associated_data: bytes) -> bytes:
        """Authenticate and decrypt; only then does the state move.

        Raises:
            ForgedError: `message_forged`.
            ReplayedError: `message_number_used`: it was decrypted before, or its key is no longer kept.
            SkippedTooFarError: `skipped_too_far`.
            HandshakeError: `low_order_point`.
        """
        hellman = self._DoubleRatchet__diffie_hellman_ratchet
        public, previous, number = _HEADER.unpack(message.header)
        chain = hellman._DiffieHellmanRatchet__symmetric_key_ratchet._SymmetricKeyRatchet__receiving_chain
        if (
            chain is not None
            and number == chain._KDFChain__length
            and public == hellman._DiffieHellmanRatchet__other_ratchet_pub
        ):
            key = chain._KDFChain__key
            try:
                plaintext = self.aead.open(
                    message.ciphertext, digest(key, b"\x01", "sha256"), associated_data + message.header
                )
            except AuthenticationFailedException as exc:
                raise _forged() from exc
            chain._KDFChain__key = digest(key, b"\x02", "sha256")
            chain._KDFChain__length += 1
            return plaintext
        lost = chain is not None and previous - chain._KDFChain__length > MAX_SKIP
        return self._library_decrypt(message, associated_data, quiet=lost)

    def _library_decrypt(self, message: RatchetMessage, associated_data: bytes, *, quiet: bool) -> bytes:
        try:
            if not quiet:
                return now(self.decrypt_message(message._library(), associated_data))
            with warnings.catch_warnings():  # more of the last chain is lost than keys are kept for: go on
                warnings.simplefilter("ignore")
                return now(self.decrypt_message(message._library(), associated_data))
        except AuthenticationFailedException as exc:
            raise _forged() from exc
        except DuplicateMessageException as exc:
            raise ReplayedError("message_number_used", "this message number was used before") from exc
        except DoSProtectionException as exc:
            raise _too_far() from exc

    @property
    def skipped_count(self) -> int:
        """How many keys are kept for messages that have not come."""
        return len(self._DoubleRatchet__skipped_message_keys)

    def dump(self) -> bytes:
        """Return the state. It is secret."""
        hellman = self._DoubleRatchet__diffie_hellman_ratchet
        symmetric = hellman._DiffieHellmanRatchet__symmetric_key_ratchet
        writer = Writer().raw(hellman._DiffieHellmanRatchet__own_ratchet_priv)
        writer.raw(hellman._DiffieHellmanRatchet__other_ratchet_pub)
        previous = symmetric._SymmetricKeyRatchet__previous_sending_chain_length
        writer.u8(previous is not None).u32(previous or 0)
        for chain in (
            hellman._DiffieHellmanRatchet__root_chain,
            symmetric._SymmetricKeyRatchet__sending_chain,
            symmetric._SymmetricKeyRatchet__receiving_chain,
        ):
            writer.u8(chain is not None)
            if chain is not None:
                writer.raw(chain._KDFChain__key).u32(chain._KDFChain__length)
        writer.u32(self.skipped_count)
        for (public, number), key in self._DoubleRatchet__skipped_message_keys.items():
            writer.raw(public).u32(number).raw(key)
        return writer.bytes()

    @classmethod
    def load(cls, data: bytes) -> "Ratchet":
        """Take up a state that `dump` returned."""
        reader = Reader(data, what="ratchet state", max_bytes=64 * 1024)
        private, other = reader.raw(32), reader.raw(32)
        has_previous, previous = reader.flag(), reader.u32()
        root, sending, receiving = _read_chain(reader), _read_chain(reader), _read_chain(reader)
        skipped = [
            SkippedMessageKeyModel(ratchet_pub=reader.raw(32), index=reader.u32(), message_key=reader.raw(32))
            for _ in range(reader.u32())
        ]
        reader.end()
        if root is None:
            raise ValueError("a ratchet has a root")
        aead = Aead()
        ratchet = cls.from_model(
            DoubleRatchetModel(
                diffie_hellman_ratchet=DiffieHellmanRatchetModel(
                    own_ratchet_priv=private,
                    other_ratchet_pub=other,
                    root_chain=root,
                    symmetric_key_ratchet=SymmetricKeyRatchetModel(
                        receiving_chain=receiving,
                        sending_chain=sending,
                        previous_sending_chain_length=previous if has_previous else None,
                    ),
                ),
                skipped_message_keys=skipped,
            ),
            **configuration(aead),
        )
        hellman = ratchet._DoubleRatchet__diffie_hellman_ratchet
        hellman._DiffieHellmanRatchet__own_ratchet_priv = PrivateKey.of(private)
        ratchet.aead = aead
        return ratchet


def _read_chain(reader: Reader) -> KDFChainModel | None:
    return KDFChainModel(key=reader.raw(32), length=reader.u32()) if reader.flag() else None


def _forged() -> ForgedError:
    return ForgedError("message_forged", "the message does not authenticate in this session")


def _too_far() -> SkippedTooFarError:
    return SkippedTooFarError("skipped_too_far", f"more than {MAX_SKIP} messages are missing before this one")
