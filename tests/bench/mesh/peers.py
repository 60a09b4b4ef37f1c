"""What the mesh's cryptography is compared with. Each subject encrypts, decrypts and starts sessions.

`floor` is AES-256-GCM alone, with a key made ready for each message: nothing that gives each message a key
can be faster here. `recommended` is the doubleratchet package as its manual sets it up. `vodozemac` is the
Rust implementation of Olm with Python bindings. `kars` is a whole session: sealed header, padding,
post-quantum epochs.
"""

import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import doubleratchet
import vodozemac
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from doubleratchet.recommended import (
    HashFunction,
    aead_aes_hmac,
    diffie_hellman_ratchet_curve25519,
    kdf_hkdf,
    kdf_separate_hmacs,
)
from kars_sdk.mesh import bundles, handshake, knock, primitives
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.names import peer_name
from kars_sdk.mesh.prekeys import Bundle, KemPrekey, OneTimePrekey, PrivatePrekeys, SignedPrekey
from kars_sdk.mesh.session import Session
from kars_sdk.mesh.testing import Authority

Encrypt = Callable[[bytes], Any]
Decrypt = Callable[[Any], bytes]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pair:
    """One established conversation."""

    encrypt: Encrypt
    decrypt: Decrypt
    reply: Encrypt
    read: Decrypt


@dataclass(frozen=True)
class Subject:
    """What is measured. `pair` makes a conversation; `start` one whole set-up of both ends, prekeys ready."""

    name: str
    pair: Callable[[], Pair]
    start: Callable[[], None] | None = None


def now(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run what never suspends without a loop: the loop's cost belongs to no subject."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    raise RuntimeError("it suspended")


def floor() -> Pair:
    """AES-256-GCM alone."""
    key = os.urandom(32)

    def encrypt(plaintext: bytes) -> tuple[bytes, bytes]:
        nonce = os.urandom(12)
        return nonce, AESGCM(key).encrypt(nonce, plaintext, b"")

    def decrypt(message: tuple[bytes, bytes]) -> bytes:
        return AESGCM(key).decrypt(message[0], message[1], b"")

    return Pair(encrypt, decrypt, encrypt, decrypt)


class _Hellman(diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet):
    """As recommended."""


class _Root(kdf_hkdf.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"bench root"


class _Chain(kdf_separate_hmacs.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256


class _Aead(aead_aes_hmac.AEAD):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"bench aead"


class _Ratchet(doubleratchet.DoubleRatchet):
    @staticmethod
    def _build_associated_data(associated_data: bytes, header: doubleratchet.Header) -> bytes:
        counters = (header.previous_sending_chain_length, header.sending_chain_length)
        return associated_data + header.ratchet_pub + b"".join(each.to_bytes(8, "big") for each in counters)


def recommended() -> Pair:
    """The doubleratchet package with its recommended parts."""
    configuration: dict[str, Any] = {
        "diffie_hellman_ratchet_class": _Hellman,
        "root_chain_kdf": _Root,
        "message_chain_kdf": _Chain,
        "message_chain_constant": b"\x02\x01",
        "dos_protection_threshold": 1000,
        "max_num_skipped_message_keys": 2000,
        "aead": _Aead,
    }
    secret, key = os.urandom(32), X25519PrivateKey.generate()
    ours, first = now(
        _Ratchet.encrypt_initial_message(
            **configuration, shared_secret=secret, recipient_ratchet_pub=key.public_key().public_bytes_raw(),
            message=b"", associated_data=b"ad",
        )
    )  # fmt: skip
    theirs, _ = now(
        _Ratchet.decrypt_initial_message(
            **configuration, shared_secret=secret, own_ratchet_priv=key.private_bytes_raw(),
            message=first, associated_data=b"ad",
        )
    )  # fmt: skip
    now(ours.decrypt_message(now(theirs.encrypt_message(b"", b"ad")), b"ad"))
    return Pair(
        lambda text: now(ours.encrypt_message(text, b"ad")),
        lambda message: now(theirs.decrypt_message(message, b"ad")),
        lambda text: now(theirs.encrypt_message(text, b"ad")),
        lambda message: now(ours.decrypt_message(message, b"ad")),
    )


def olm() -> Pair:
    """Vodozemac's Olm."""
    alice, bob = vodozemac.Account(), vodozemac.Account()
    bob.generate_one_time_keys(1)
    ours = alice.create_outbound_session(bob.curve25519_key, next(iter(bob.one_time_keys.values())))
    theirs, _ = bob.create_inbound_session(alice.curve25519_key, ours.encrypt(b"hello").to_pre_key())
    ours.decrypt(theirs.encrypt(b"welcome"))
    return Pair(ours.encrypt, theirs.decrypt, theirs.encrypt, ours.decrypt)


def olm_start() -> Callable[[], None]:
    """Vodozemac's set-up; accounts and one-time keys are made before."""
    alice, bob = vodozemac.Account(), vodozemac.Account()

    def start() -> None:
        bob.generate_one_time_keys(1)
        key = next(iter(bob.one_time_keys.values()))
        ours = alice.create_outbound_session(bob.curve25519_key, key)
        bob.create_inbound_session(alice.curve25519_key, ours.encrypt(b"hello").to_pre_key())

    return start


class _Ends:
    """Two of ours with prekeys ready."""

    def __init__(self) -> None:
        self.authority = Authority("bench.test")
        self.alice, self.bob = IdentityKey.generate(), IdentityKey.generate()
        self.names = tuple(peer_name(f"spiffe://bench.test/ns/b/sandbox/{name}") for name in ("alice", "bob"))
        self.statements = [
            self.authority.statement(name, key.public)
            for name, key in zip(self.names, (self.alice, self.bob), strict=True)
        ]
        self.signed, self.one_time = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self.kem = MLKEM1024PrivateKey.generate()
        signed, kem = self.signed.public_key().public_bytes_raw(), self.kem.public_key().public_bytes_raw()
        self.bundle = Bundle(
            identity=self.statements[1],
            signed_prekey=SignedPrekey(
                key_id=1, public_key=signed, signature=self.bob.sign(primitives.SIGNED_PREKEY_LABEL, signed)
            ),
            one_time_prekey=OneTimePrekey(
                key_id=2, public_key=self.one_time.public_key().public_bytes_raw()
            ),
            kem_prekey=KemPrekey(
                key_id=3, algorithm=primitives.KEM_1024, public_key=kem,
                signature=self.bob.sign(primitives.KEM_PREKEY_LABEL, bytes((primitives.KEM_1024,)) + kem),
            ),
        )  # fmt: skip
        self.now = float(int(time.time()))

    def start(self) -> tuple[Session, Session]:
        """Verify, knock, verify, accept: PQXDH, statements and signatures included; nothing on disk."""
        trust = self.authority.trust
        verified = bundles.verify(
            self.bundle, peer=self.names[1], trust=trust, now=self.now, allow_classic=False
        )
        started = handshake.initiate(
            self.alice, own=self.names[0], statement=self.statements[0], verified=verified, purpose="session",
            now=self.now,
        )  # fmt: skip
        ours, first = Session.initiate(
            peer=self.names[1], peer_key=self.bob.public, keys=started.keys,
            peer_ratchet_key=self.bundle.signed_prekey.public_key, payload=b"hello", created=self.now,
            post_quantum=True,
        )  # fmt: skip
        read = knock.read(started.knock.signed, started.knock.signature)
        statement = knock.verify(
            read, own=self.names[1], own_key=self.bob.public, trust=trust, now=self.now,
            transport_sender=self.names[0],
        )  # fmt: skip
        signed = self.signed.private_bytes_raw()
        keys = handshake.accept(
            self.bob, knock=read, statement=statement,
            private=PrivatePrekeys(
                signed=signed, signed_signature=self.bundle.signed_prekey.signature,
                one_time=self.one_time.private_bytes_raw(), kem_seed=self.kem.private_bytes_raw(),
                kem_public=self.bundle.kem_prekey.public_key if self.bundle.kem_prekey else b"",
            ),
        )  # fmt: skip
        theirs, _ = Session.accept(
            peer=self.names[0], peer_key=self.alice.public, keys=keys, own_ratchet_key=signed, message=first,
            created=self.now, post_quantum=True,
        )  # fmt: skip
        return ours, theirs


def kars() -> Pair:
    """Our session."""
    ours, theirs = _Ends().start()
    ours.decrypt(theirs.encrypt(b""))
    return Pair(ours.encrypt, theirs.decrypt, theirs.encrypt, ours.decrypt)


def kars_start() -> Callable[[], None]:
    """Our set-up."""
    ends = _Ends()

    def start() -> None:
        ends.start()

    return start


SUBJECTS = (
    Subject("floor", floor),
    Subject("recommended", recommended),
    Subject("vodozemac", olm, olm_start()),
    Subject("kars", kars, kars_start()),
)
