"""Issues identity statements: this name holds this key, says the controller, until then.

The name is the caller's certificate's and nothing in a request can change it; the key must prove that it is
held. Serials of a peer rise for ever, so that an old statement cannot come back.
"""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars.mesh.v1 import identity_pb2
from kars_common.audit import AuditLog
from kars_common.errors import (
    InvalidInputError,
    KarsError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from kars_common.policy import key_id
from kars_common.spiffe import SpiffeId

from kars_controller.mesh.statement_keys import STATEMENT_LIFETIME, StatementKeys
from kars_controller.resources.timestamps import rfc3339
from kars_controller.storage import Database

STATEMENT_LABEL = b"kars-mesh-identity-v1\0"
POSSESSION_LABEL = b"kars-mesh-possession-v1\0"
_BACKDATED = timedelta(seconds=60)
_BURST = 10
_PER_MINUTE = 6.0
_MAX_PEERS = 10_000
_P = 2**255 - 19
_SMALL_ORDER_Y = {
    0,
    1,
    _P - 1,
    int.from_bytes(
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
    ),
    int.from_bytes(
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
    ),
}
"""The y coordinates of all points whose order divides 8: signatures under them prove nothing."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    then_s: float


class StatementIssuer:
    """Binds identity keys to sandboxes."""

    def __init__(
        self,
        database: Database,
        keys: StatementKeys,
        audit: AuditLog,
        exists: Callable[[SpiffeId], bool],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create one.

        Args:
            database: where the newest serial of each peer is kept.
            keys: sign.
            audit: where issues and refusals go.
            exists: tells whether the sandbox behind a name is still wanted.
            now: what time it is.
            monotonic_s: for the rate limit.
        """
        self.keys = keys
        self._database = database
        self._audit = audit
        self._exists = exists
        self._now = now
        self._monotonic_s = monotonic_s
        self._buckets: dict[str, _Bucket] = {}

    async def issue(self, peer: SpiffeId, identity_key: bytes, proof: bytes) -> identity_pb2.SignedStatement:
        """Return a fresh statement about the caller and its key; durable and on record before it is returned.

        Raises:
            ResourceExhaustedError: `identity_rate_exceeded`.
            PermissionDeniedError: `workload_gone`.
            InvalidInputError: `identity_key_invalid`.
            UnauthenticatedError: `possession_proof_invalid`.
        """
        self._take(str(peer))
        try:
            if not self._exists(peer):
                raise PermissionDeniedError("workload_gone", f"{peer.path} is no workload of this platform")
            public_key = check_identity_key(identity_key)
            _check_possession(public_key, proof, peer)
        except KarsError as exc:
            fields = {"peer": str(peer), "reason": exc.reason}
            await self._audit.durable(self._audit.append("mesh.statement_refused", fields))
            raise
        serial, changed = self._next_serial(str(peer), identity_key)
        signed = self._sign(peer, identity_key, serial)
        issued: dict[str, object] = {
            "peer": str(peer),
            "serial": serial,
            "identity_key": key_id(public_key),
            "key_changed": changed,
            "signed_by": signed.key_id,
        }
        await self._audit.durable(self._audit.append("mesh.statement_issued", issued))
        return signed

    def _sign(self, peer: SpiffeId, identity_key: bytes, serial: int) -> identity_pb2.SignedStatement:
        now = self._now()
        statement = rfc8785.dumps(
            {
                "peer": str(peer),
                "identityKey": base64.urlsafe_b64encode(identity_key).rstrip(b"=").decode(),
                "notBefore": rfc3339(now - _BACKDATED),
                "notAfter": rfc3339(now + STATEMENT_LIFETIME),
                "serial": serial,
            }
        )
        key = self.keys.signing()
        signature = key.private.sign(STATEMENT_LABEL + statement)
        return identity_pb2.SignedStatement(statement=statement, signature=signature, key_id=key.key_id)

    def _next_serial(self, peer: str, identity_key: bytes) -> tuple[int, bool]:
        """Return a serial above every one before it, and whether the key is another one than last time."""
        with self._database.transaction():
            row = self._database.row(
                "SELECT serial, identity_key FROM mesh_identities WHERE peer = ?", (peer,)
            )
            # The clock as a floor: a database that was restored must not issue a serial for the second time.
            serial = max(0 if row is None else int(row["serial"]), int(self._now().timestamp())) + 1
            self._database.execute(
                "INSERT OR REPLACE INTO mesh_identities (peer, serial, identity_key) VALUES (?, ?, ?)",
                (peer, serial, identity_key),
            )
        return serial, row is not None and bytes(row["identity_key"]) != identity_key

    def _take(self, peer: str) -> None:
        now_s = self._monotonic_s()
        bucket = self._buckets.setdefault(peer, _Bucket(float(_BURST), now_s))
        bucket.tokens = min(float(_BURST), bucket.tokens + (now_s - bucket.then_s) * _PER_MINUTE / 60)
        bucket.then_s = now_s
        if bucket.tokens < 1:
            wait_s = (1 - bucket.tokens) * 60 / _PER_MINUTE
            raise ResourceExhaustedError(
                "identity_rate_exceeded",
                f"at most {_PER_MINUTE:g} identity statements a minute; try again in {wait_s:.0f} s",
            )
        bucket.tokens -= 1
        if len(self._buckets) > _MAX_PEERS:
            # Whoever has all its tokens loses nothing when it is forgotten.
            full = [
                name
                for name, item in self._buckets.items()
                if item.then_s < now_s - 60 * _BURST / _PER_MINUTE
            ]
            for name in full:
                del self._buckets[name]


def check_identity_key(raw: bytes) -> Ed25519PublicKey:
    """Return an identity key that can prove something.

    Raises:
        InvalidInputError: `identity_key_invalid`: not 32 bytes, not canonical, or of small order.
    """
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if len(raw) != 32 or y >= _P or y in _SMALL_ORDER_Y:
        raise InvalidInputError(
            "identity_key_invalid",
            "the identity key must be a raw Ed25519 public key, of full order",
        )
    return Ed25519PublicKey.from_public_bytes(raw)


def _check_possession(key: Ed25519PublicKey, proof: bytes, peer: SpiffeId) -> None:
    try:
        key.verify(proof, POSSESSION_LABEL + str(peer).encode())
    except InvalidSignature as exc:
        raise UnauthenticatedError(
            "possession_proof_invalid", "the proof is no signature of the identity key over the caller's name"
        ) from exc
