"""Prekeys: what a peer publishes so that others can begin a session while it is away.

Signatures are checked when keys come in, so that a broken client hears of it itself; takers check them
again. A one-time key is deleted, durably, before it is handed out. Draining is bounded three ways: each
caller has a rate, each peer's keys have a rate, and one caller gets at most one one-time key of one peer in
a window. Beyond that the last-resort key is given, which starts sessions as well.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from kars.mesh.v1 import registry_pb2
from kars_common.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    ResourceExhaustedError,
)

from kars_relay.quota import Bucket
from kars_relay.registry.database import RegistryDatabase

MAX_ONE_TIME = 100
_SPK = b"kars-mesh-spk-v1\x00"
_KEM = b"kars-mesh-kem-v1\x00"
_KEM_BYTES = {
    registry_pb2.KEM_ALGORITHM_ML_KEM_768: 1184,
    registry_pb2.KEM_ALGORITHM_ML_KEM_1024: 1568,
}
_CURVE, _KEM_KIND = 0, 1
_MAX_BUCKETS = 100_000


@dataclass(frozen=True, kw_only=True)
class TakeLimits:
    """How fast prekeys may be taken."""

    caller_per_minute: int = 30
    """By one caller, of all peers."""
    peer_per_minute: int = 120
    """Of one peer, by all callers."""
    window_s: float = 3600.0
    """One one-time key a (caller, peer) in this time."""
    low_water: int = 10
    """With fewer left, the peer is told to publish more."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """One-time keys left."""

    one_time: int
    one_time_kem: int
    signed_prekey_id: int = 0


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What starts a session."""

    signed: registry_pb2.SignedPrekey
    one_time: registry_pb2.OneTimePrekey | None
    kem: registry_pb2.KemPrekey | None
    kem_is_last_resort: bool
    left: Counts


class Prekeys:
    """All peers' prekeys."""

    def __init__(
        self,
        database: RegistryDatabase,
        limits: TakeLimits,
        *,
        clock_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._database = database
        self._clock_s = clock_s
        self._monotonic_s = monotonic_s
        self._buckets: dict[str, Bucket] = {}

    async def publish(
        self, peer: str, identity_key: bytes, request: registry_pb2.PublishPrekeysRequest
    ) -> Counts:
        """Add a peer's keys.

        Raises:
            InvalidInputError: `prekey_invalid`, `prekey_signature_invalid`.
            FailedPreconditionError: `signed_prekey_missing`.
            ResourceExhaustedError: `too_many_prekeys`.
        """
        _check_request(request, Ed25519PublicKey.from_public_bytes(identity_key))

        def work(db: sqlite3.Connection) -> Counts:
            _save_replaced(db, peer, request)
            _save_one_time(db, peer, _CURVE, request.one_time_prekeys)
            _save_one_time(db, peer, _KEM_KIND, request.one_time_kem_prekeys)
            counts = _counts(db, peer)
            if max(counts.one_time, counts.one_time_kem) > MAX_ONE_TIME:
                raise ResourceExhaustedError(
                    "too_many_prekeys", f"at most {MAX_ONE_TIME} one-time prekeys of a kind are held"
                )
            if request.one_time_kem_prekeys and not _last_resort(db, peer):
                raise FailedPreconditionError(
                    "signed_prekey_missing", "publish a last-resort KEM key as well"
                )
            return counts

        return await self._database.run(work)

    async def counts(self, peer: str) -> Counts:
        """Return what is left of a peer's keys."""
        return await self._database.run(lambda db: _counts(db, peer))

    async def take(self, caller: str, peer: str) -> Taken:
        """Hand out one bundle of a peer to a caller that may write to it.

        Raises:
            NotFoundError: `prekeys_not_published`.
            ResourceExhaustedError: `prekey_rate_exceeded`.
        """
        self._spend(f"caller {caller}", self.limits.caller_per_minute)
        self._spend(f"peer {peer}", self.limits.peer_per_minute)
        now_s = self._clock_s()

        def work(db: sqlite3.Connection) -> Taken:
            signed = db.execute("SELECT * FROM signed_prekeys WHERE peer = ?", (peer,)).fetchone()
            if signed is None:
                raise NotFoundError("prekeys_not_published", "this peer has published no prekeys yet")
            db.execute("DELETE FROM takes WHERE at < ?", (now_s - self.limits.window_s,))
            earlier = db.execute(
                "SELECT 1 FROM takes WHERE caller = ? AND peer = ?", (caller, peer)
            ).fetchone()
            one_time = kem = None
            if earlier is None:
                one_time, kem = _pop(db, peer, _CURVE), _pop(db, peer, _KEM_KIND)
                db.execute("INSERT INTO takes VALUES (?, ?, ?)", (caller, peer, now_s))
            last_resort = kem is None
            if kem is None:
                kem = _last_resort(db, peer)
            return Taken(
                signed=_signed_message(signed),
                one_time=None
                if one_time is None
                else registry_pb2.OneTimePrekey(key_id=one_time["key_id"], public_key=one_time["public_key"]),
                kem=None if kem is None else _kem_message(kem),
                kem_is_last_resort=last_resort and kem is not None,
                left=_counts(db, peer),
            )

        return await self._database.run(work)

    def _spend(self, name: str, per_minute: int) -> None:
        now_s = self._monotonic_s()
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                self._buckets.pop(next(iter(self._buckets)))
            bucket = self._buckets[name] = Bucket(per_minute / 60, per_minute, now_s)
        if bucket.level(now_s) < 1:
            wait_ms = int(bucket.wait_s(1, now_s) * 1000) + 1
            raise ResourceExhaustedError(
                "prekey_rate_exceeded",
                "prekeys are taken too fast; sessions that exist need none",
                {"retry_after_ms": str(wait_ms)},
            )
        bucket.take(1)


def _check_request(request: registry_pb2.PublishPrekeysRequest, identity: Ed25519PublicKey) -> None:
    if len(request.one_time_prekeys) > MAX_ONE_TIME or len(request.one_time_kem_prekeys) > MAX_ONE_TIME:
        raise ResourceExhaustedError("too_many_prekeys", f"at most {MAX_ONE_TIME} one-time prekeys of a kind")
    if request.HasField("signed_prekey"):
        _check_curve(request.signed_prekey.public_key)
        _check_signature(identity, request.signed_prekey.signature, _SPK + request.signed_prekey.public_key)
    for key in request.one_time_prekeys:
        _check_curve(key.public_key)
    kem_keys = list(request.one_time_kem_prekeys)
    if request.HasField("last_resort_kem_prekey"):
        kem_keys.append(request.last_resort_kem_prekey)
    for kem in kem_keys:
        if len(kem.public_key) != _KEM_BYTES.get(kem.algorithm):
            raise InvalidInputError("prekey_invalid", "a KEM prekey has the wrong size for its algorithm")
        _check_signature(identity, kem.signature, _KEM + bytes((kem.algorithm,)) + kem.public_key)


def _check_curve(raw: bytes) -> None:
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError as exc:  # a wrong length, or a point of low order: the shared secret would be zero
        raise InvalidInputError("prekey_invalid", "a prekey is no usable X25519 key") from exc


_PROBE = X25519PrivateKey.generate()


def _check_signature(identity: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
    try:
        identity.verify(signature, message)
    except InvalidSignature as exc:
        raise InvalidInputError(
            "prekey_signature_invalid", "a prekey is not signed with the registered identity key"
        ) from exc


def _save_replaced(db: sqlite3.Connection, peer: str, request: registry_pb2.PublishPrekeysRequest) -> None:
    if request.HasField("signed_prekey"):
        key = request.signed_prekey
        db.execute(
            "INSERT OR REPLACE INTO signed_prekeys VALUES (?, ?, ?, ?)",
            (peer, key.key_id, key.public_key, key.signature),
        )
    elif db.execute("SELECT 1 FROM signed_prekeys WHERE peer = ?", (peer,)).fetchone() is None:
        raise FailedPreconditionError("signed_prekey_missing", "the first publication needs a signed prekey")
    if request.HasField("last_resort_kem_prekey"):
        kem = request.last_resort_kem_prekey
        db.execute(
            "INSERT OR REPLACE INTO last_resort VALUES (?, ?, ?, ?, ?)",
            (peer, kem.key_id, kem.algorithm, kem.public_key, kem.signature),
        )


def _save_one_time(
    db: sqlite3.Connection,
    peer: str,
    kind: int,
    keys: Sequence[registry_pb2.OneTimePrekey | registry_pb2.KemPrekey],
) -> None:
    row = db.execute("SELECT key_id FROM highest_ids WHERE peer = ? AND kind = ?", (peer, kind)).fetchone()
    highest = -1 if row is None else int(row["key_id"])
    for key in sorted(keys, key=lambda item: item.key_id):
        if key.key_id <= highest:
            raise InvalidInputError(
                "prekey_invalid", f"one-time key ids must rise; {key.key_id} is not above {highest}"
            )
        highest = key.key_id
        kem = key if isinstance(key, registry_pb2.KemPrekey) else None
        db.execute(
            "INSERT INTO one_time VALUES (?, ?, ?, ?, ?, ?)",
            (
                peer,
                kind,
                key.key_id,
                kem.algorithm if kem else 0,
                key.public_key,
                kem.signature if kem else b"",
            ),
        )
    if keys:
        db.execute("INSERT OR REPLACE INTO highest_ids VALUES (?, ?, ?)", (peer, kind, highest))


def _pop(db: sqlite3.Connection, peer: str, kind: int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM one_time WHERE peer = ? AND kind = ? ORDER BY key_id LIMIT 1", (peer, kind)
    ).fetchone()
    if row is not None:
        db.execute(
            "DELETE FROM one_time WHERE peer = ? AND kind = ? AND key_id = ?", (peer, kind, row["key_id"])
        )
    return row


def _last_resort(db: sqlite3.Connection, peer: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute("SELECT * FROM last_resort WHERE peer = ?", (peer,)).fetchone()
    return row


def _counts(db: sqlite3.Connection, peer: str) -> Counts:
    held = dict(
        db.execute("SELECT kind, count(*) FROM one_time WHERE peer = ? GROUP BY kind", (peer,)).fetchall()
    )
    signed = db.execute("SELECT key_id FROM signed_prekeys WHERE peer = ?", (peer,)).fetchone()
    return Counts(
        one_time=held.get(_CURVE, 0),
        one_time_kem=held.get(_KEM_KIND, 0),
        signed_prekey_id=0 if signed is None else int(signed["key_id"]),
    )


def _signed_message(row: sqlite3.Row) -> registry_pb2.SignedPrekey:
    return registry_pb2.SignedPrekey(
        key_id=row["key_id"], public_key=row["public_key"], signature=row["signature"]
    )


def _kem_message(row: sqlite3.Row) -> registry_pb2.KemPrekey:
    return registry_pb2.KemPrekey(
        key_id=row["key_id"],
        algorithm=row["algorithm"],
        public_key=row["public_key"],
        signature=row["signature"],
    )
