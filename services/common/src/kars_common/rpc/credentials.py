"""TLS credentials of gRPC servers and channels, from an SVID source.

Servers look at the source at every handshake, so a renewed SVID is used by the next connection and
open ones live on. Clients cannot do that in Python: `kars_common.rpc.channel` opens a new channel.
"""

import logging
from collections.abc import Callable
from threading import Lock
from typing import cast

import grpc

from kars_common.errors import UnavailableError
from kars_common.svid import Svid, SvidSource

_LOG = logging.getLogger(__name__)


def server_credentials(source: SvidSource, *, require_client_certificate: bool) -> grpc.ServerCredentials:
    """Return credentials that follow the source.

    Raises:
        UnavailableError: `svid_unavailable` when the source has no SVID yet.
    """
    rotation = _Rotation(source, verify_clients=require_client_certificate)
    return grpc.dynamic_ssl_server_credentials(
        rotation.initial(),
        cast("Callable[[], grpc.ServerCertificateConfiguration]", rotation.fetch),  # None: no change
        require_client_authentication=require_client_certificate,
    )


def channel_credentials(svid: Svid) -> grpc.ChannelCredentials:
    """Return credentials that prove this SVID and trust its bundle only."""
    return grpc.ssl_channel_credentials(
        root_certificates=svid.trust_bundle_pem,
        private_key=svid.private_key_pem,
        certificate_chain=svid.certificate_chain_pem,
    )


class _Rotation:
    """Hands gRPC a new configuration once after each change; called from gRPC's own threads."""

    def __init__(self, source: SvidSource, *, verify_clients: bool) -> None:
        self._source = source
        self._verify_clients = verify_clients
        self._lock = Lock()
        self._served: Svid | None = None

    def initial(self) -> grpc.ServerCertificateConfiguration:
        self._served = self._source.current()
        return self._configuration(self._served)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            try:
                svid = self._source.current()
            except UnavailableError:
                # Keep what is served: clients see that it expired and refuse it themselves.
                _LOG.warning("serving an old certificate", extra={"reason": "svid_unavailable"})
                return None
            if svid == self._served:
                return None
            self._served = svid
            return self._configuration(svid)

    def _configuration(self, svid: Svid) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(svid.private_key_pem, svid.certificate_chain_pem)],
            root_certificates=svid.trust_bundle_pem if self._verify_clients else None,
        )
