"""The keys that cards and pushes are signed with, and the key set that is published.

Rotation: add a file with a later name, and it signs; the older ones stay published until their files are
removed.
"""

import logging
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kars_common import files
from kars_common.agent_cards import CardSigningKey, load_signing_key
from kars_common.errors import InvalidInputError

_LOG = logging.getLogger(__name__)
_OWN_FILE = "card-key.pem"


class KeyRing:
    """Signing keys from a folder, or one that was made here."""

    def __init__(self, directory: Path | None, state_directory: Path) -> None:
        """Read the keys; blocks for that.

        Raises:
            InvalidInputError: `card_key_invalid`, `card_key_exposed`, or no key in the folder.
        """
        self._directory = directory
        self._state_directory = state_directory
        self._keys = self._read()

    @property
    def active(self) -> CardSigningKey:
        """The key that signs."""
        return self._keys[-1]

    def key_set(self) -> dict[str, Any]:
        """Return the public JWK set."""
        return {"keys": [key.public_jwk() for key in self._keys]}

    def refresh(self) -> bool:
        """Read the folder again; tells whether another key signs now. Bad files change nothing."""
        try:
            keys = self._read()
        except InvalidInputError as exc:
            _LOG.warning("card keys not refreshed", extra={"reason": exc.reason, "error": exc.message})
            return False
        changed = [key.kid for key in keys] != [key.kid for key in self._keys]
        if changed:
            self._keys = keys
        return changed

    def _read(self) -> list[CardSigningKey]:
        if self._directory is None:
            path = self._state_directory / _OWN_FILE
            if not path.exists():
                files.replace(path, _fresh_key())
            return [load_signing_key(path)]
        paths = sorted(self._directory.glob("*.pem"))
        if not paths:
            raise InvalidInputError("card_key_invalid", f"no *.pem in {self._directory}")
        return [load_signing_key(path, kid=path.stem) for path in paths]


def _fresh_key() -> bytes:
    # ES256: every official client verifies it without an extra library.
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
