"""An SVID between two runs of a process: one file, so that key and certificate cannot come apart."""

import stat
from pathlib import Path

import orjson

from kars_common import files
from kars_common.errors import InvalidInputError
from kars_common.svid import Svid

_FILE = "svid.json"
_MAX_FILE_BYTES = 512 * 1024


def save(directory: Path, svid: Svid) -> None:
    """Keep an SVID (0600), replacing the one kept before; blocks."""
    document = {
        "certificateChain": svid.certificate_chain_pem.decode(),
        "privateKey": svid.private_key_pem.decode(),
        "trustBundle": svid.trust_bundle_pem.decode(),
    }
    files.replace(directory / _FILE, orjson.dumps(document), mode=0o600)


def load(directory: Path) -> Svid | None:
    """Return the SVID kept in a directory, None when there is none.

    Raises:
        InvalidInputError: `svid_invalid` when the file is damaged, `svid_key_exposed` when others
            may read it.
    """
    path = directory / _FILE
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidInputError("svid_key_exposed", f"{path} must be open to its owner only")
        with path.open("rb") as file:
            document = orjson.loads(file.read(_MAX_FILE_BYTES))
        chain, key, roots = (
            str(document[name]).encode() for name in ("certificateChain", "privateKey", "trustBundle")
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InvalidInputError("svid_invalid", f"{path} is not a stored identity") from exc
    return Svid.from_pem(chain=chain, private_key=key, trust_bundle=roots)
