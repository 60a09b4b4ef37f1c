"""What the Double Ratchet is plugged together from: derivations, AEAD, X25519 with cached public keys.

The package's own recommended parts are slow or compare tags byte by byte; these have the same meaning.
Nothing here suspends: a plug that did would let two decrypts interleave, so `now` refuses it.
"""
# ruff: noqa: SLF001 - names of the package that are private to it; its version is bounded

import copy
import hmac
import os
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar, cast

import doubleratchet
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from doubleratchet import AuthenticationFailedException
from doubleratchet.diffie_hellman_ratchet import DiffieHellmanRatchet

from kars_sdk.mesh import primitives

MAX_SKIP = 256
"""Keys derived for one message that came early, and keys kept altogether."""

NONCE_BYTES, TAG_BYTES = 12, 16
_ROOT_INFO = b"kars-mesh-v1 root"
_T = TypeVar("_T")
digest = hmac.digest
"""HMAC in one call of OpenSSL; `hmac.new` costs four times as much."""


class PrivateKey(bytes):
    """A private key as the package wants it, bytes, that carries its loaded form and its public key."""

    loaded: X25519PrivateKey
    public: bytes

    @classmethod
    def of(cls, private: bytes) -> "PrivateKey":
        """Return a key in this form; loads it only where it is not."""
        if isinstance(private, cls):
            return private
        key = cls(private)
        key.loaded = X25519PrivateKey.from_private_bytes(private)
        key.public = key.loaded.public_key().public_bytes_raw()
        return key

    @classmethod
    def generate(cls) -> "PrivateKey":
        """Make a key."""
        loaded = X25519PrivateKey.generate()
        key = cls(loaded.private_bytes_raw())
        key.loaded, key.public = loaded, loaded.public_key().public_bytes_raw()
        return key


class RootKDF(doubleratchet.KDF):
    """HKDF-SHA256 with the root key as salt, 64 bytes, written out as the three HMACs that it is."""

    @staticmethod
    async def derive(key: bytes, data: bytes, length: int) -> bytes:
        """Derive the next root key and a chain key."""
        if length != 64:
            raise ValueError("the root chain derives 64 bytes")
        extracted = digest(key, data, "sha256")
        first = digest(extracted, _ROOT_INFO + b"\x01", "sha256")
        return first + digest(extracted, first + _ROOT_INFO + b"\x02", "sha256")


class ChainKDF(doubleratchet.KDF):
    """Signal's chain step: the message key is HMAC(chain, 0x01), the next chain key HMAC(chain, 0x02)."""

    @staticmethod
    async def derive(key: bytes, data: bytes, length: int) -> bytes:
        """Derive one key for each constant."""
        if length != 32 * len(data):
            raise ValueError("the message chains derive 32 bytes for each constant")
        return b"".join(digest(key, data[at : at + 1], "sha256") for at in range(len(data)))


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
        return nonce + AESGCM(digest(self.epoch_key, key, "sha256")).encrypt(
            nonce, plaintext, associated_data
        )

    def open(self, ciphertext: bytes, key: bytes, associated_data: bytes) -> bytes:
        """Return the plaintext, or raise as the package expects it."""
        try:
            return AESGCM(digest(self.epoch_key, key, "sha256")).decrypt(
                ciphertext[:NONCE_BYTES], memoryview(ciphertext)[NONCE_BYTES:], associated_data
            )
        except (InvalidTag, ValueError) as exc:
            raise AuthenticationFailedException from exc


class Chain(Protocol):
    """A chain of the package."""

    _KDFChain__key: bytes
    _KDFChain__length: int


class SymmetricRatchet(Protocol):
    """Both chains of the package."""

    _SymmetricKeyRatchet__receiving_chain: Chain | None
    _SymmetricKeyRatchet__sending_chain: Chain | None
    _SymmetricKeyRatchet__previous_sending_chain_length: int | None


class Hellman(DiffieHellmanRatchet):
    """X25519, with the own public key derived once a turn and a copy of only what can change."""

    _DiffieHellmanRatchet__own_ratchet_priv: bytes
    _DiffieHellmanRatchet__other_ratchet_pub: bytes
    _DiffieHellmanRatchet__root_chain: Chain
    _DiffieHellmanRatchet__symmetric_key_ratchet: SymmetricRatchet

    @staticmethod
    def _generate_priv() -> bytes:
        return PrivateKey.generate()

    @staticmethod
    def _derive_pub(priv: bytes) -> bytes:
        return PrivateKey.of(priv).public

    @staticmethod
    def _perform_diffie_hellman(own_priv: bytes, other_pub: bytes) -> bytes:
        primitives.check_x25519(other_pub, "a ratchet key")
        return PrivateKey.of(own_priv).loaded.exchange(X25519PublicKey.from_public_bytes(other_pub))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hellman":
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


def configuration(aead: Aead) -> dict[str, Any]:
    """Return what the package is told to use."""
    return {
        "diffie_hellman_ratchet_class": Hellman,
        "root_chain_kdf": RootKDF,
        "message_chain_kdf": ChainKDF,
        "message_chain_constant": b"\x02\x01",  # the package takes the next chain key first
        "dos_protection_threshold": MAX_SKIP,
        "max_num_skipped_message_keys": MAX_SKIP,
        "aead": aead,
    }
