"""The last good bundle on disk, so that an enforcement point enforces while the controller is away.

Keeps the signed form: whoever loads it verifies it again. Judges nothing itself.
"""

from pathlib import Path
from threading import Lock

from google.protobuf.message import DecodeError
from kars.policy.v1 import policy_pb2

from kars_common import files
from kars_common.policy import bundles

_FILE = "last-good.pb"
_MAX_FILE_BYTES = bundles.MAX_PAYLOAD_BYTES + 4096


class PolicyStore:
    """One signed bundle in one directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE
        self._lock = Lock()
        self._saved_version = 0

    def save(self, signed: policy_pb2.SignedBundle, version: int) -> None:
        """Replace the kept bundle atomically and durably; blocks, safe from any thread.

        A save that was overtaken by one of a higher version does nothing.
        """
        with self._lock:
            if version >= self._saved_version:
                files.replace(self._path, signed.SerializeToString(deterministic=True))
                self._saved_version = version

    def load(self) -> policy_pb2.SignedBundle | None:
        """Return what was kept, unverified; None when there is nothing or it cannot be read."""
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
            return policy_pb2.SignedBundle.FromString(data) if len(data) <= _MAX_FILE_BYTES else None
        except (FileNotFoundError, DecodeError):
            return None
