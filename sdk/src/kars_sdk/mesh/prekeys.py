"""Prekeys: what a peer needs to start a session with us while we are away.

Private keys are records of the store, by id; the key agreement is given exactly the ones it needs. A one-time
key is deleted after the first message that used it has authenticated, not before. Signed and last-resort keys
are renewed weekly; old ones stay until nothing that was sent with them can still be waiting at a relay.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kars_sdk.mesh import primitives
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import HandshakeError
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.statements import SignedStatement
from kars_sdk.mesh.store import Store

ROTATE_AFTER_S = 7 * 86400
KEEP_AFTER_ROTATION_S = 14 * 86400
"""Longer than a relay keeps mail (7 days at most)."""

_SIGNED, _ONE_TIME, _KEM, _STATE = "prekey.signed", "prekey.onetime", "prekey.kem", "prekey.state"


@dataclass(frozen=True, kw_only=True)
class SignedPrekey:
    """An X25519 key, signed by the identity key."""

    key_id: int
    public_key: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class OneTimePrekey:
    """An X25519 key for one session."""

    key_id: int
    public_key: bytes


@dataclass(frozen=True, kw_only=True)
class KemPrekey:
    """A KEM key, signed by the identity key."""

    key_id: int
    algorithm: int
    public_key: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a registry says about a peer. Not believed until `bundles.verify` has looked at it."""

    identity: SignedStatement
    signed_prekey: SignedPrekey
    one_time_prekey: OneTimePrekey | None = None
    kem_prekey: KemPrekey | None = None
    kem_is_last_resort: bool = False


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What goes to the registry; None means unchanged."""

    signed_prekey: SignedPrekey | None = None
    last_resort_kem_prekey: KemPrekey | None = None
    one_time_prekeys: tuple[OneTimePrekey, ...] = ()
    one_time_kem_prekeys: tuple[KemPrekey, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrivatePrekeys:
    """The keys that one handshake needs."""

    signed: bytes
    signed_signature: bytes
    one_time: bytes | None
    kem_seed: bytes | None
    kem_public: bytes


class Prekeys:
    """This process's prekeys."""

    def __init__(
        self, store: Store, identity: IdentityKey, *, clock: Callable[[], float] = time.time, kem: bool = True
    ) -> None:
        self._store = store
        self._identity = identity
        self._clock = clock
        self.offers_kem = kem

    def renew(self) -> Publication:
        """Make the signed and the last-resort key if they are missing or due, and forget what is too old.

        Idempotent until the next rotation is due; returns the current keys each time.
        """
        with self._store.transaction():
            spk_id, kem_id, made = self._state()
            now = self._clock()
            if spk_id == 0 or now - made >= ROTATE_AFTER_S:
                spk_id = self._new_signed(now)
                kem_id = self._new_kem(one_time=False) if self.offers_kem else 0
                self._store.put(_STATE, b"current", _packed(spk_id, kem_id, now))
            self._forget_old(now)
        signed = self._signed(spk_id)
        return Publication(
            signed_prekey=signed[2], last_resort_kem_prekey=self._kem(kem_id)[2] if kem_id else None
        )

    def more(self, one_time: int, one_time_kem: int) -> Publication:
        """Make one-time keys; they are on disk before they are published."""
        with self._store.transaction():
            keys = tuple(self._new_one_time() for _ in range(one_time))
            kem = tuple(self._kem(self._new_kem(one_time=True))[2] for _ in range(one_time_kem))
        return Publication(one_time_prekeys=keys, one_time_kem_prekeys=kem if self.offers_kem else ())

    def private(self, *, signed_id: int, one_time_id: int | None, kem_id: int | None) -> PrivatePrekeys:
        """Return the keys that a handshake names.

        Raises:
            HandshakeError: `signed_prekey_unknown`, `one_time_prekey_used`, `kem_prekey_unknown`.
        """
        signed, _, public = self._signed(signed_id)
        one_time = None
        if one_time_id is not None:
            one_time = self._store.get(_ONE_TIME, _name(one_time_id))
            if one_time is None:
                raise HandshakeError(
                    "one_time_prekey_used", f"one-time prekey {one_time_id} is not there (any more)"
                )
        seed, kem_public = None, b""
        if kem_id is not None:
            seed, _, kem = self._kem(kem_id)
            kem_public = kem.public_key
        return PrivatePrekeys(
            signed=signed, signed_signature=public.signature, one_time=one_time, kem_seed=seed,
            kem_public=kem_public,
        )  # fmt: skip

    def used(self, *, one_time_id: int | None, kem_id: int | None) -> None:
        """Delete one-time keys after their first message has authenticated; last-resort keys stay."""
        with self._store.transaction():
            if one_time_id is not None:
                self._store.delete(_ONE_TIME, _name(one_time_id))
            if kem_id is not None and self._kem(kem_id)[1]:
                self._store.delete(_KEM, _name(kem_id))

    def _signed(self, key_id: int) -> tuple[bytes, float, SignedPrekey]:
        record = self._store.get(_SIGNED, _name(key_id))
        if record is None:
            raise HandshakeError(
                "signed_prekey_unknown",
                f"signed prekey {key_id} is not there (any more): fetch fresh prekeys",
            )
        reader = Reader(record, what="prekey", max_bytes=256)
        private, made, signature = reader.raw(32), reader.u64(), reader.raw(64)
        public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        return private, made, SignedPrekey(key_id=key_id, public_key=public, signature=signature)

    def _kem(self, key_id: int) -> tuple[bytes, bool, KemPrekey]:
        record = self._store.get(_KEM, _name(key_id))
        if record is None:
            raise HandshakeError("kem_prekey_unknown", f"KEM prekey {key_id} is not there (any more)")
        reader = Reader(record, what="prekey", max_bytes=256)
        one_time, seed, signature = reader.flag(), reader.raw(64), reader.raw(64)
        public = MLKEM1024PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
        return seed, one_time, KemPrekey(
            key_id=key_id, algorithm=primitives.KEM_1024, public_key=public, signature=signature
        )  # fmt: skip

    def _new_signed(self, now: float) -> int:
        key_id = self._next_id()
        key = X25519PrivateKey.generate()
        signature = self._identity.sign(primitives.SIGNED_PREKEY_LABEL, key.public_key().public_bytes_raw())
        record = Writer().raw(key.private_bytes_raw()).u64(int(now)).raw(signature).bytes()
        self._store.put(_SIGNED, _name(key_id), record)
        return key_id

    def _new_one_time(self) -> OneTimePrekey:
        key_id = self._next_id()
        key = X25519PrivateKey.generate()
        self._store.put(_ONE_TIME, _name(key_id), key.private_bytes_raw())
        return OneTimePrekey(key_id=key_id, public_key=key.public_key().public_bytes_raw())

    def _new_kem(self, *, one_time: bool) -> int:
        key_id = self._next_id()
        key = MLKEM1024PrivateKey.generate()
        signed = bytes((primitives.KEM_1024,)) + key.public_key().public_bytes_raw()
        signature = self._identity.sign(primitives.KEM_PREKEY_LABEL, signed)
        record = Writer().u8(one_time).raw(key.private_bytes_raw()).raw(signature).bytes()
        self._store.put(_KEM, _name(key_id), record)
        return key_id

    def _forget_old(self, now: float) -> None:
        current, kem, _ = self._state()
        for name, record in self._store.items(_SIGNED):
            reader = Reader(record, what="prekey", max_bytes=256)
            reader.raw(32)
            if name != _name(current) and now - reader.u64() > ROTATE_AFTER_S + KEEP_AFTER_ROTATION_S:
                self._store.delete(_SIGNED, name)
                # The last-resort KEM key of that week was made right after it.
                if kem and int.from_bytes(name, "big") + 1 != kem:
                    self._store.delete(_KEM, _name(int.from_bytes(name, "big") + 1))

    def _next_id(self) -> int:
        record = self._store.get(_STATE, b"counter")
        key_id = int.from_bytes(record or b"", "big") + 1
        self._store.put(_STATE, b"counter", key_id.to_bytes(4, "big"))
        return key_id

    def _state(self) -> tuple[int, int, float]:
        record = self._store.get(_STATE, b"current")
        if record is None:
            return 0, 0, 0
        reader = Reader(record, what="prekey state", max_bytes=64)
        return reader.u32(), reader.u32(), reader.u64()


def _packed(spk_id: int, kem_id: int, made: float) -> bytes:
    return Writer().u32(spk_id).u32(kem_id).u64(int(made)).bytes()


def _name(key_id: int) -> bytes:
    return key_id.to_bytes(4, "big")
