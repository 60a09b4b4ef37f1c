"""An SVID that somebody else renews in files: cert-manager's secret, or kars' own layout.

Accepts `tls.crt`, `tls.key`, `ca.crt` or `svid.pem`, `svid.key`, `trust.pem` in one directory; rotation
is noticed by content, so symlink swaps, rewrites and network mounts all do. Never writes.
"""

import asyncio
import logging
import os
import stat
from pathlib import Path

from kars_common.errors import InvalidInputError, UnavailableError
from kars_common.identity._changes import Clock, Holder, utc_now
from kars_common.svid import Svid

_LOG = logging.getLogger(__name__)
_LAYOUTS = (
    ("tls.crt", "tls.key", "ca.crt"),
    ("svid.pem", "svid.key", "trust.pem"),
    ("operator.pem", "operator.key", "trust.pem"),
)
_MAX_FILE_BYTES = 256 * 1024


class FileSvidSource:
    """Reads an SVID from a directory, at construction and again every `poll_s`."""

    def __init__(self, directory: Path, *, poll_s: float = 5.0, clock: Clock = utc_now) -> None:
        """Read once; an absent or half-written set of files is tried again by `run`.

        Args:
            directory: holds one of the layouts; the first complete one is taken.
            poll_s: how often `run` reads again.
            clock: what time it is.
        """
        self._directory = directory
        self._poll_s = poll_s
        self._holder = Holder(clock)
        self._problem = ""
        self.refresh()

    def current(self) -> Svid:
        """Return the SVID on disk when last read.

        Raises:
            UnavailableError: `svid_unavailable` with what is wrong with the files.
        """
        if self._holder.held is None:
            raise UnavailableError("svid_unavailable", f"no usable identity: {self._problem}")
        return self._holder.current()

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """Wait until the files hold a valid SVID other than `previous`; needs `run`."""
        return await self._holder.wait_changed(previous)

    async def run(self) -> None:
        """Notice rotations for ever."""
        while True:
            await asyncio.sleep(self._poll_s)
            self.refresh()

    def refresh(self) -> None:
        """Read the files now; keep the SVID held if they do not fit together."""
        try:
            svid = load_svid(self._directory)
        except InvalidInputError as error:
            if error.message != self._problem:
                _LOG.warning("identity files not usable", extra={"reason": error.reason})
            self._problem = error.message
            return
        self._problem = ""
        if svid != self._holder.held:
            self._holder.put(svid)


def load_svid(directory: Path) -> Svid:
    """Read one SVID from a directory.

    Raises:
        InvalidInputError: `svid_files_missing`, `svid_key_exposed` when others may read the key,
            `svid_invalid` when the parts do not belong together.
    """
    for chain, key, roots in _LAYOUTS:
        paths = [directory / name for name in (chain, key, roots)]
        if all(path.is_file() for path in paths):
            _check_private(paths[1])
            chain_pem, key_pem, roots_pem = (_read(path) for path in paths)
            return Svid.from_pem(chain=chain_pem, private_key=key_pem, trust_bundle=roots_pem)
    raise InvalidInputError("svid_files_missing", f"no complete set of identity files in {directory}")


def _check_private(key: Path) -> None:
    # Group-readable is what fsGroup makes of a Kubernetes secret; everybody is never right.
    if os.stat(key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise InvalidInputError("svid_key_exposed", f"{key} must not be open to other users")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InvalidInputError("svid_files_missing", f"cannot read {path}") from exc
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidInputError("svid_invalid", f"{path} has more than {_MAX_FILE_BYTES} bytes")
    return data
