"""One-time join tokens of the local platform: 32 random bytes, bound to one identity, spent once.

Only the hash is stored, so the database gives nobody an identity. A token that failed tells nothing of
why: unknown, spent and expired are one answer.
"""

import base64
import hashlib
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from kars_common.errors import UnauthenticatedError
from kars_common.spiffe import SpiffeId

from kars_controller.storage import Database

_TOKEN_BYTES = 32
_KEPT_AFTER_EXPIRY_S = 24 * 3600


class JoinTokens:
    """Issues tokens and takes them back."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._now = now

    def issue(self, identity: SpiffeId, lifetime: timedelta) -> str:
        """Return a new token for `identity`; earlier ones of it that are not spent stop to work."""
        token = base64.urlsafe_b64encode(secrets.token_bytes(_TOKEN_BYTES)).rstrip(b"=").decode()
        now = self._now()
        with self._database.transaction():
            self._database.execute(
                "DELETE FROM join_tokens WHERE expires_at < ? OR (spiffe_id = ? AND spent_at IS NULL)",
                (now.timestamp() - _KEPT_AFTER_EXPIRY_S, str(identity)),
            )
            self._database.execute(
                "INSERT INTO join_tokens (token_hash, spiffe_id, expires_at) VALUES (?, ?, ?)",
                (_hash(token), str(identity), (now + lifetime).timestamp()),
            )
        return token

    def identity_of(self, token: str) -> SpiffeId:
        """Return whom a token that still works is for, without spending it.

        Raises:
            UnauthenticatedError: `attestation_failed`.
        """
        row = self._database.row(
            "SELECT spiffe_id FROM join_tokens WHERE token_hash = ? AND spent_at IS NULL AND expires_at > ?",
            (_hash(token), self._now().timestamp()),
        )
        if row is None:
            raise _failed()
        return SpiffeId.parse(row["spiffe_id"])

    def spend(self, token: str) -> None:
        """Make a token worthless; of two callers at once, one succeeds.

        Raises:
            UnauthenticatedError: `attestation_failed`.
        """
        now = self._now().timestamp()
        with self._database.transaction():
            cursor = self._database.execute(
                "UPDATE join_tokens SET spent_at = ?"
                " WHERE token_hash = ? AND spent_at IS NULL AND expires_at > ?",
                (now, _hash(token), now),
            )
        if cursor.rowcount != 1:
            raise _failed()

    def revoke(self, identity: SpiffeId) -> None:
        """Forget every token of an identity."""
        with self._database.transaction():
            self._database.execute("DELETE FROM join_tokens WHERE spiffe_id = ?", (str(identity),))


def _hash(token: str) -> bytes:
    return hashlib.sha256(b"kars.join-token\0" + token.encode("utf-8", "surrogatepass")).digest()


def _failed() -> UnauthenticatedError:
    return UnauthenticatedError("attestation_failed", "join token is unknown, spent or expired")
