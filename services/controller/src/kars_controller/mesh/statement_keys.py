"""The keys that identity statements are signed with: one signs, those before and after it are believed.

A new key is published first and signs later, when everybody has read it; an old one is believed until the
last statement that it signed has ended. Private keys stay in one 0600 file of the controller.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.mesh.v1 import identity_pb2
from kars_common import files
from kars_common.errors import FailedPreconditionError
from kars_common.policy import key_id

STATEMENT_LIFETIME = timedelta(hours=24)
ANNOUNCED_FOR = timedelta(minutes=15)
"""How long a key is published before it signs."""


@dataclass(frozen=True, kw_only=True)
class StatementKey:
    """One key, and from when on it signs. The next one's beginning is its end."""

    private: Ed25519PrivateKey
    signs_from: datetime

    @property
    def key_id(self) -> str:
        """Name of the key."""
        return key_id(self.private.public_key())

    @property
    def public_bytes(self) -> bytes:
        """Raw public key."""
        return self.private.public_key().public_bytes_raw()


class StatementKeys:
    """All keys that still count. `tend` rotates them; somebody has to call it now and then."""

    def __init__(
        self,
        path: Path,
        trust_domain: str,
        rotate_after: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        foreign: Sequence[identity_pb2.StatementKey] = (),
    ) -> None:
        """Read the keys, or make the first one, which signs at once.

        Args:
            path: where they are kept.
            trust_domain: about whose peers they speak.
            rotate_after: age at which the newest is replaced.
            now: what time it is.
            foreign: keys of federated trust domains, published beside ours.

        Raises:
            FailedPreconditionError: `key_damaged`, the file does not hold keys.
        """
        self.trust_domain = trust_domain
        self._path = path
        self._rotate_after = rotate_after
        self._now = now
        self._foreign = tuple(foreign)
        self._keys = self._load()

    def signing(self) -> StatementKey:
        """Return the key that signs now."""
        now = self._now()
        begun = [key for key in self._keys if key.signs_from <= now]
        # A clock that was set back must not leave us without a key.
        return begun[-1] if begun else self._keys[0]

    def tend(self) -> bool:
        """Announce a new key when it is time, and drop those whose statements have all ended.

        Returns:
            Whether the published keys changed.
        """
        now = self._now()
        keys = [
            key
            for key, successor in zip(self._keys, [*self._keys[1:], None], strict=True)
            if successor is None or now < successor.signs_from + STATEMENT_LIFETIME
        ]
        if now >= keys[-1].signs_from + self._rotate_after:
            private = Ed25519PrivateKey.generate()
            keys.append(StatementKey(private=private, signs_from=now + ANNOUNCED_FOR))
        if keys == self._keys:
            return False
        self._save(keys)
        self._keys = keys
        return True

    def messages(self) -> list[identity_pb2.StatementKey]:
        """Return the public keys as contracts carry them, those of federated domains included."""
        own = [
            identity_pb2.StatementKey(
                key_id=key.key_id, public_key=key.public_bytes, trust_domain=self.trust_domain
            )
            for key in self._keys
        ]
        return [*own, *self._foreign]

    def trust_file(self) -> bytes:
        """Return the public keys as the file that agents read."""
        keys = [
            {
                "keyId": key.key_id,
                "publicKey": base64.urlsafe_b64encode(key.public_key).rstrip(b"=").decode(),
                "trustDomain": key.trust_domain,
            }
            for key in self.messages()
        ]
        return json.dumps({"keys": keys}, indent=2).encode() + b"\n"

    def _load(self) -> list[StatementKey]:
        if not self._path.exists():
            first = [StatementKey(private=Ed25519PrivateKey.generate(), signs_from=self._now())]
            self._save(first)
            return first
        try:
            keys = [
                StatementKey(
                    private=Ed25519PrivateKey.from_private_bytes(base64.b64decode(item["privateKey"])),
                    signs_from=datetime.fromisoformat(item["signsFrom"]),
                )
                for item in json.loads(self._path.read_bytes())
            ]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise FailedPreconditionError("key_damaged", f"{self._path.name} does not hold keys") from exc
        if not keys or any(key.signs_from.tzinfo is None for key in keys):
            raise FailedPreconditionError("key_damaged", f"{self._path.name} does not hold keys")
        return sorted(keys, key=lambda key: key.signs_from)

    def _save(self, keys: list[StatementKey]) -> None:
        plain = [
            {
                "privateKey": base64.b64encode(key.private.private_bytes_raw()).decode(),
                "signsFrom": key.signs_from.isoformat(),
            }
            for key in keys
        ]
        files.replace(self._path, json.dumps(plain).encode())
