"""How a workload proves itself to the controller the first time.

A `JoinToken` is spent by its one use and its file removed; a `KubernetesToken` is read afresh each
time, because the kubelet renews it. Neither sends anything itself.
"""

import hashlib
import logging
import stat
from pathlib import Path
from typing import Protocol

from kars.identity.v1 import identity_pb2

from kars_common.errors import UnavailableError

_LOG = logging.getLogger(__name__)
_MAX_TOKEN_BYTES = 16 * 1024


class Attestation(Protocol):
    """One way to prove who this workload is."""

    def request(self, csr_pem: bytes) -> identity_pb2.AttestRequest:
        """Return the request with the proof as it is now.

        Raises:
            UnavailableError: `attestation_unavailable` when there is no usable proof; there may be one later.
        """
        ...

    def accepted(self) -> None:
        """Learn that the proof of the last request was accepted."""
        ...

    def refused(self) -> None:
        """Learn that the proof of the last request was refused."""
        ...


class JoinToken:
    """A one-time token in a file that only this user can read; the controller may write a new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent = b""
        self._useless: set[bytes] = set()

    def request(self, csr_pem: bytes) -> identity_pb2.AttestRequest:
        """Return the request with the token in the file, unless that one is known to be useless."""
        token = _read_private(self._path)
        self._sent = hashlib.sha256(token.encode()).digest()
        if self._sent in self._useless:
            raise _unavailable(f"the token in {self._path} was used or refused; waiting for another")
        return identity_pb2.AttestRequest(csr_pem=csr_pem.decode(), join_token=token)

    def accepted(self) -> None:
        """Remove the file; a token that stays behind is useless all the same."""
        self._useless.add(self._sent)
        try:
            if hashlib.sha256(_read_private(self._path).encode()).digest() == self._sent:
                self._path.unlink()
        except (OSError, UnavailableError):
            _LOG.warning("spent join token stays on disk", extra={"path": str(self._path)})

    def refused(self) -> None:
        """Send this token no more; guessing on would look like an attack."""
        self._useless.add(self._sent)


class KubernetesToken:
    """A projected service-account token with the audience `kars-controller`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def request(self, csr_pem: bytes) -> identity_pb2.AttestRequest:
        """Return the request with the token that the kubelet wrote last."""
        return identity_pb2.AttestRequest(csr_pem=csr_pem.decode(), kubernetes_token=_read(self._path))

    def accepted(self) -> None:
        """Nothing: the kubelet owns the file."""

    def refused(self) -> None:
        """Nothing: the next one may be accepted."""


def _read_private(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError as exc:
        raise _unavailable(f"cannot read {path}") from exc
    if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _unavailable(f"{path} must be a file that only its owner can read")
    return _read(path)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TOKEN_BYTES + 1)
        token = data.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise _unavailable(f"cannot read a token from {path}") from exc
    if not token or len(data) > _MAX_TOKEN_BYTES:
        raise _unavailable(f"{path} holds no token of at most {_MAX_TOKEN_BYTES} bytes")
    return token


def _unavailable(message: str) -> UnavailableError:
    return UnavailableError("attestation_unavailable", message)
