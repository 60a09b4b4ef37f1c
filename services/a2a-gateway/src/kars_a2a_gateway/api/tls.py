"""TLS of the public listeners: 1.2 and later, client certificates asked for, rotation in place.

A context that is loaded again serves the new certificate to the next handshake; open connections live on.
"""

import logging
import ssl
from pathlib import Path

_LOG = logging.getLogger(__name__)


class TlsFiles:
    """One context, and the files that it is made of."""

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
        """Read the files; blocks for that.

        Raises:
            OSError, ssl.SSLError: they do not belong together.
        """
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._seen: tuple[float, ...] = ()
        self.authorities: bytes = client_ca_file.read_bytes() if client_ca_file is not None else b""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        self.context.set_alpn_protocols(["http/1.1"])
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self._known: set[bytes] = set()
        self.accept((self.authorities,))
        self.refresh()

    @property
    def certificate(self) -> tuple[bytes, bytes]:
        """Key and chain, PEM, as gRPC wants them."""
        return self._key_file.read_bytes(), self._cert_file.read_bytes()

    def accept(self, authorities: tuple[bytes, ...]) -> None:
        """Accept client certificates of more authorities.

        One that policy no longer names stays until a restart; policy judges each request all the same.
        """
        for pem in authorities:
            if pem and pem not in self._known:
                self._known.add(pem)
                self.context.load_verify_locations(cadata=pem.decode("ascii"))

    def refresh(self) -> bool:
        """Load the files again if they changed; a half-written pair is tried again later."""
        seen = tuple(path.stat().st_mtime for path in (self._cert_file, self._key_file))
        if seen == self._seen:
            return False
        try:
            self.context.load_cert_chain(self._cert_file, self._key_file)
        except (OSError, ssl.SSLError):
            if not self._seen:
                raise
            _LOG.warning("the new certificate and key do not fit; serving the old ones")
            return False
        self._seen = seen
        return True
