"""The Double Ratchet on the `doubleratchet` package, with its slow spots replaced at its extension points.

The package keeps the state machine: chains, turns, skipped keys, "nothing moves before the tag is checked".
Ours are the key derivations, the AEAD, cached public keys, a copy that copies only what can change, and two
short paths (encrypt; decrypt of the message that is next) that do exactly what the package does, without its
coroutines. A test holds both against the package's own way, byte for byte.

This is the only module that knows private names of the package; its version is bounded for that reason.
Nothing here suspends: a plug that did would let two decrypts interleave, so `now` refuses it.
"""
# ruff: noqa: SLF001

import copy
import hmac
import os
import struct
import warnings
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import doubleratchet
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from doubleratchet import AuthenticationFailedException, DoSProtectionException, DuplicateMessageException
from doubleratchet.diffie_hellman_ratchet import DiffieHellmanRatchet
from doubleratchet.models import (
    DiffieHellmanRatchetModel,
    DoubleRatchetModel,
    KDFChainModel,
    SkippedMessageKeyModel,
    SymmetricKeyRatchetModel,
)
from doubleratchet.types import EncryptedMessage, Header

from kars_sdk.mesh import primitives
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import ForgedError, HandshakeError, ReplayedError, SkippedTooFarError

MAX_SKIP = 256
"""Keys derived for one message that came early, and keys kept altogether."""

MAX_CHAIN = 1 << 31
_HEADER = struct.Struct(">32sII")
HEADER_BYTES = _HEADER.size
NONCE_BYTES, TAG_BYTES = 12, 16
_ROOT_INFO = b"kars-mesh-v1 root"
_T = TypeVar("_T")
_digest = hmac.digest


class _PrivateKey(bytes):
    """A private key as the package wants it, bytes, that carries its loaded form and its public key."""

    loaded: X25519PrivateKey
    public: bytes

    @classmethod
    def of(cls, private: bytes) -> "_PrivateKey":
        if isinstance(private, cls):
            return private
        key = cls(private)
        key.loaded = X25519PrivateKey.from_private_bytes(private)
        key.public = key.loaded.public_key().public_bytes_raw()
        return key

    @classmethod
    def generate(cls) -> "_PrivateKey":
        loaded = X25519PrivateKey.generate()
        key = cls(loaded.private_bytes_raw())
        key.loaded, key.public = loaded, loaded.public_key().public_bytes_raw()
        return key


class _RootKDF(doubleratchet.KDF):
    """HKDF-SHA256 with the root key as salt, 64 bytes, written out as the three HMACs that it is."""

    @staticmethod
    async def derive(key: bytes, data: bytes, length: int) -> bytes:
        if length != 64:
            raise ValueError("the root chain derives 64 bytes")
        extracted = _digest(key, data, "sha256")
        first = _digest(extracted, _ROOT_INFO + b"\x01", "sha256")
        return first + _digest(extracted, first + _ROOT_INFO + b"\x02", "sha256")


class _ChainKDF(doubleratchet.KDF):
    """Signal's chain step: the message key is HMAC(chain, 0x01), the next chain key HMAC(chain, 0x02)."""

    @staticmethod
    async def derive(key: bytes, data: bytes, length: int) -> bytes:
        if length != 32 * len(data):
            raise ValueError("the message chains derive 32 bytes for each constant")
        return b"".join(_digest(key, data[at : at + 1], "sha256") for at in range(len(data)))


class Aead(doubleratchet.AEAD):
    """AES-256-GCM under a key from message key and epoch key, with a random nonce.

    Each message has its own key, so a fixed nonce would do, until state is rolled back: then one key would
    seal two messages. The random nonce keeps even that from being a break of GCM. Tags are compared in
    constant time by OpenSSL.
    """

    epoch_key = bytes(32)
    """Secret of the post-quantum ratchet's epoch; set for each message by the session."""

    async def encrypt(self, plaintext: bytes, key: bytes, associated_data: bytes) -> bytes:  # type: ignore[override]
        """As the package calls it."""
        return self.seal(plaintext, key, associated_data)

    async def decrypt(self, ciphertext: bytes, key: bytes, associated_data: bytes) -> bytes:  # type: ignore[override]
        """As the package calls it."""
        return self.open(ciphertext, key, associated_data)

    def seal(self, plaintext: bytes, key: bytes, associated_data: bytes) -> bytes:
        """Return nonce and ciphertext."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(_digest(self.epoch_key, key, "sha256")).encrypt(
            nonce, plaintext, associated_data
        )

    def open(self, ciphertext: bytes, key: bytes, associated_data: bytes) -> bytes:
        """Return the plaintext, or raise as the package expects it."""
        try:
            return AESGCM(_digest(self.epoch_key, key, "sha256")).decrypt(
                ciphertext[:NONCE_BYTES], memoryview(ciphertext)[NONCE_BYTES:], associated_data
            )
        except (InvalidTag, ValueError) as exc:
            raise AuthenticationFailedException from exc


class _Chain(Protocol):
    _KDFChain__key: bytes
    _KDFChain__length: int


class _Symmetric(Protocol):
    _SymmetricKeyRatchet__receiving_chain: _Chain | None
    _SymmetricKeyRatchet__sending_chain: _Chain | None
    _SymmetricKeyRatchet__previous_sending_chain_length: int | None


class _Hellman(DiffieHellmanRatchet):
    """X25519, with the own public key derived once a turn and a copy of only what can change."""

    _DiffieHellmanRatchet__own_ratchet_priv: bytes
    _DiffieHellmanRatchet__other_ratchet_pub: bytes
    _DiffieHellmanRatchet__root_chain: _Chain
    _DiffieHellmanRatchet__symmetric_key_ratchet: _Symmetric

    @staticmethod
    def _generate_priv() -> bytes:
        return _PrivateKey.generate()

    @staticmethod
    def _derive_pub(priv: bytes) -> bytes:
        return _PrivateKey.of(priv).public

    @staticmethod
    def _perform_diffie_hellman(own_priv: bytes, other_pub: bytes) -> bytes:
        primitives.check_x25519(other_pub, "a ratchet key")
        return _PrivateKey.of(own_priv).loaded.exchange(X25519PublicKey.from_public_bytes(other_pub))

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hellman":
        clone = copy.copy(self)
        symmetric = copy.copy(self._DiffieHellmanRatchet__symmetric_key_ratchet)
        symmetric._SymmetricKeyRatchet__receiving_chain = copy.copy(
            symmetric._SymmetricKeyRatchet__receiving_chain
        )
        symmetric._SymmetricKeyRatchet__sending_chain = copy.copy(
            symmetric._SymmetricKeyRatchet__sending_chain
        )
        clone._DiffieHellmanRatchet__symmetric_key_ratchet = symmetric
        clone._DiffieHellmanRatchet__root_chain = copy.copy(self._DiffieHellmanRatchet__root_chain)
        return clone


def now(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("_T", done.value)
    coroutine.close()
    raise RuntimeError("a plug of the ratchet suspended: two messages could interleave")


def _configuration(aead: Aead) -> dict[str, Any]:
    return {
        "diffie_hellman_ratchet_class": _Hellman,
        "root_chain_kdf": _RootKDF,
        "message_chain_kdf": _ChainKDF,
        "message_chain_constant": b"\x02\x01",  # the package takes the next chain key first
        "dos_protection_threshold": MAX_SKIP,
        "max_num_skipped_message_keys": MAX_SKIP,
        "aead": aead,
    }


@dataclass(frozen=True, slots=True)
class RatchetMessage:
    """A header in clear, and nonce with ciphertext."""

    header: bytes
    ciphertext: bytes

    def _library(self) -> EncryptedMessage:
        return EncryptedMessage(Header(*_HEADER.unpack(self.header)), self.ciphertext)


class Ratchet(doubleratchet.DoubleRatchet):
    """One Double Ratchet. Synchronous; not for several threads."""

    _DoubleRatchet__diffie_hellman_ratchet: _Hellman
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
                **_configuration(aead),
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
                    **_configuration(aead),
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
            _PrivateKey.of(hellman._DiffieHellmanRatchet__own_ratchet_priv).public,
            symmetric._SymmetricKeyRatchet__previous_sending_chain_length or 0,
            chain._KDFChain__length,
        )
        message_key = _digest(key, b"\x01", "sha256")
        ciphertext = self.aead.seal(plaintext, message_key, associated_data + header)
        chain._KDFChain__key = _digest(key, b"\x02", "sha256")
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
                    message.ciphertext, _digest(key, b"\x01", "sha256"), associated_data + message.header
                )
            except AuthenticationFailedException as exc:
                raise _forged() from exc
            chain._KDFChain__key = _digest(key, b"\x02", "sha256")
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
        configuration = _configuration(aead)
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
            **configuration,
        )
        hellman = ratchet._DoubleRatchet__diffie_hellman_ratchet
        hellman._DiffieHellmanRatchet__own_ratchet_priv = _PrivateKey.of(private)
        ratchet.aead = aead
        return ratchet


def _read_chain(reader: Reader) -> KDFChainModel | None:
    return KDFChainModel(key=reader.raw(32), length=reader.u32()) if reader.flag() else None


def _forged() -> ForgedError:
    return ForgedError("message_forged", "the message does not authenticate in this session")


def _too_far() -> SkippedTooFarError:
    return SkippedTooFarError("skipped_too_far", f"more than {MAX_SKIP} messages are missing before this one")
