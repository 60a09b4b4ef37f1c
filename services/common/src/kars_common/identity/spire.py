"""An SVID from a SPIFFE Workload API, as a SPIRE agent serves it on a unix socket.

The agent pushes each renewal over one stream; this follows it and reconnects. A Python client checks
servers by DNS name, so registration entries of servers need theirs (`SpiffeId.dns_name`).
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf.message import DecodeError

from kars_common.errors import InvalidInputError, KarsError, UnavailableError, clean_text
from kars_common.identity import _workload_api
from kars_common.identity._changes import Clock, Holder, utc_now
from kars_common.rpc.channel import mapped_errors
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid
from kars_common.tasks import Backoff

_LOG = logging.getLogger(__name__)
_DER_SEQUENCE = 0x30


class SpireSvidSource:
    """Follows one Workload API. Run in one task."""

    def __init__(
        self,
        socket_path: Path,
        *,
        spiffe_id: SpiffeId | None = None,
        clock: Clock = utc_now,
        backoff: Backoff | None = None,
    ) -> None:
        """Describe the source; nothing is opened yet.

        Args:
            socket_path: the agent's socket.
            spiffe_id: which identity to take; None for the first, which the standard makes the default.
            clock: what time it is.
            backoff: waits between attempts; None for 0.2 to 30 seconds.
        """
        self._socket_path = socket_path
        self._spiffe_id = spiffe_id
        self._holder = Holder(clock)
        self._backoff = backoff or Backoff()

    def current(self) -> Svid:
        """Return the SVID pushed last; safe from any thread.

        Raises:
            UnavailableError: `svid_unavailable`.
        """
        return self._holder.current()

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """Wait for an SVID other than `previous`; needs `run`."""
        return await self._holder.wait_changed(previous)

    async def run(self) -> None:
        """Follow the agent for ever.

        Raises:
            InvalidInputError: when the agent says that the request is wrong; the standard forbids to retry.
        """
        while True:
            try:
                with mapped_errors():
                    await self._follow()
            except InvalidInputError:
                raise
            except KarsError as error:
                if error.grpc_status is grpc.StatusCode.PERMISSION_DENIED:
                    self._holder.drop()  # the agent takes the identity back
                _LOG.warning("workload api interrupted", extra={"reason": error.reason})
            await self._backoff.wait()

    async def _follow(self) -> None:
        options = [("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost")]
        async with grpc.aio.insecure_channel(f"unix:{self._socket_path}", options=options) as channel:
            fetch: Any = channel.unary_stream(
                _workload_api.FETCH_X509_SVID,
                request_serializer=_workload_api.X509SVIDRequest.SerializeToString,
            )
            request = _workload_api.X509SVIDRequest()
            async for response in fetch(request, metadata=_workload_api.SECURITY_METADATA):
                self._take(response)
                self._backoff.reset()

    def _take(self, response: bytes) -> None:
        # Parsed here: gRPC would hand on None for bytes that it cannot parse.
        try:
            svid = _to_svid(self._choose(_workload_api.X509SVIDResponse.FromString(response)))
        except (InvalidInputError, DecodeError) as exc:
            # What the agent pushed is wrong, not our request: try again.
            raise UnavailableError("svid_answer_invalid", f"workload api: {clean_text(str(exc))}") from exc
        if svid != self._holder.held:
            self._holder.put(svid)
            _LOG.info("identity obtained", extra={"spiffe_id": str(svid.spiffe_id)})

    def _choose(self, response: Any) -> Any:  # noqa: ANN401  # messages made at run time
        for candidate in response.svids:
            if self._spiffe_id is None or candidate.spiffe_id == str(self._spiffe_id):
                return candidate
        raise InvalidInputError("svid_invalid", f"no SVID for {self._spiffe_id or 'this workload'}")


def _to_svid(message: Any) -> Svid:  # noqa: ANN401  # a message made at run time
    try:
        key = serialization.load_der_private_key(message.x509_svid_key, password=None)
        chain, roots = _to_pem(message.x509_svid), _to_pem(message.bundle)
    except (ValueError, TypeError) as exc:
        raise InvalidInputError("svid_invalid", "key or certificates are not DER") from exc
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    svid = Svid.from_pem(chain=chain, private_key=key_pem, trust_bundle=roots)
    if str(svid.spiffe_id) != message.spiffe_id:
        raise InvalidInputError("svid_invalid", "certificate names another id than the answer")
    return svid


def _to_pem(concatenated_der: bytes) -> bytes:
    return b"".join(
        x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
        for der in split_der(concatenated_der)
    )


def split_der(data: bytes) -> Iterator[bytes]:
    """Yield the DER sequences that stand one behind another.

    Raises:
        ValueError: when the bytes are anything else, or end early.
    """
    while data:
        if len(data) < 2 or data[0] != _DER_SEQUENCE:
            raise ValueError("not a DER sequence")
        length, header = data[1], 2
        if length & 0x80:
            octets = length & 0x7F
            if not 1 <= octets <= 3 or len(data) < 2 + octets:
                raise ValueError("DER length is not of a certificate")
            length, header = int.from_bytes(data[2 : 2 + octets], "big"), 2 + octets
        if len(data) < header + length:
            raise ValueError("DER ends early")
        yield data[: header + length]
        data = data[header + length :]
