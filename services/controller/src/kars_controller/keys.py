"""The controller's Ed25519 keys: one purpose each, raw private bytes in a 0600 file, made on first use."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common import files
from kars_common.errors import FailedPreconditionError


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """Return the key in a file.

    Raises:
        FailedPreconditionError: `key_damaged`, the file does not hold a key.
    """
    if not path.exists():
        files.replace(path, Ed25519PrivateKey.generate().private_bytes_raw())
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise FailedPreconditionError("key_damaged", f"{path.name} does not hold an Ed25519 key") from exc
