"""An SVID from the controller's own authority: attest once, then renew at half life for ever.

    source = ControllerSvidSource(
        SpiffeId.sandbox("kars.local", "team", "writer"),
        bootstrap_endpoint="127.0.0.1:7001", controller_endpoint="127.0.0.1:7002",
        trust_bundle_file=Path("trust.pem"), attestation=JoinToken(Path("join-token")),
        state_directory=Path("svid"),
    )

The order: a stored SVID that is still valid is used at once, so a restart needs no token. At half life
(with jitter) a new key is certified over mTLS. If that fails until the SVID ends, or the controller
handed out a new proof meanwhile, the workload attests again. Open connections are never touched here:
servers and channels look at the source when they next connect.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import grpc
from kars.identity.v1 import identity_pb2, identity_pb2_grpc

from kars_common.errors import InvalidInputError, KarsError, UnauthenticatedError, UnavailableError
from kars_common.identity import stored
from kars_common.identity._changes import Clock, Holder, utc_now
from kars_common.identity.attestation import Attestation
from kars_common.identity.csr import create_csr
from kars_common.rpc.channel import PeerChannel, mapped_errors
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid
from kars_common.tasks import Backoff, jittered

_LOG = logging.getLogger(__name__)
_CALL_TIMEOUT_S = 10.0
_LONGEST_SLEEP_S = 30.0
_MAX_BUNDLE_BYTES = 256 * 1024

_Ask = Callable[[bytes], Awaitable[identity_pb2.Svid]]


class ControllerSvidSource:
    """Obtains and renews one identity from the controller. Run in one task."""

    def __init__(
        self,
        spiffe_id: SpiffeId,
        *,
        bootstrap_endpoint: str,
        controller_endpoint: str,
        trust_bundle_file: Path,
        attestation: Attestation,
        state_directory: Path,
        clock: Clock = utc_now,
        backoff: Backoff | None = None,
    ) -> None:
        """Take the stored SVID if it is still good; nothing is sent yet.

        Args:
            spiffe_id: the identity that this workload is to have; another one is refused.
            bootstrap_endpoint: `host:port` of the listener that attests.
            controller_endpoint: `host:port` of the mTLS listener that renews.
            trust_bundle_file: PEM roots, pinned: the controller is verified against them before it is asked.
            attestation: the first proof.
            state_directory: where the SVID is kept (0600 in a 0700 directory).
            clock: what time it is.
            backoff: waits between attempts; None for 0.5 to 30 seconds.
        """
        self._spiffe_id = spiffe_id
        self._controller = SpiffeId.service(spiffe_id.trust_domain, "controller")
        self._bootstrap_endpoint = bootstrap_endpoint
        self._controller_endpoint = controller_endpoint
        self._trust_bundle_file = trust_bundle_file
        self._attestation = attestation
        self._state_directory = state_directory
        self._clock = clock
        self._backoff = backoff or Backoff(first_s=0.5, most_s=30.0)
        self._holder = Holder(clock)
        self._take_stored()

    def current(self) -> Svid:
        """Return the SVID to use now; safe from any thread.

        Raises:
            UnavailableError: `svid_unavailable`.
        """
        return self._holder.current()

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """Wait for an SVID other than `previous`; needs `run`."""
        return await self._holder.wait_changed(previous)

    async def run(self) -> None:
        """Keep the SVID fresh for ever; ends only by cancellation."""
        while True:
            await self._sleep_until_due()
            try:
                await self._refresh()
                self._backoff.reset()
                await asyncio.sleep(self._shortest_pause_s())
            except KarsError as error:
                _LOG.warning("identity not refreshed", extra={"reason": error.reason, "error": error.message})
                await self._backoff.wait()

    async def _sleep_until_due(self) -> None:
        svid = self._holder.held
        if svid is None:
            return
        half_s = (svid.half_life_at() - svid.issued_at).total_seconds()
        due = svid.issued_at + timedelta(seconds=jittered(half_s))
        # In short sleeps: the wall clock may jump, and a suspended machine must not wake up late.
        while (left_s := (due - self._clock()).total_seconds()) > 0:  # noqa: ASYNC110  # time is the event
            await asyncio.sleep(min(left_s, _LONGEST_SLEEP_S))

    def _shortest_pause_s(self) -> float:
        # An authority that backdates, or whose clock is off, can issue past half life: do not hammer it.
        left_s = (self._holder.current().expires_at - self._clock()).total_seconds()
        return max(0.0, min(1.0, left_s / 10))

    async def _refresh(self) -> None:
        held = self._holder.held
        if held is not None and held.valid_at(self._clock()):
            try:
                return await self._obtain(self._renew)
            except KarsError as error:
                # The authority may have been replaced; then only a new proof helps.
                _LOG.info("renewal failed", extra={"reason": error.reason})
                renewal = error
            try:
                return await self._obtain(self._attest)
            except KarsError:
                raise renewal from None
        return await self._obtain(self._attest)

    async def _obtain(self, ask: _Ask) -> None:
        private_key_pem, csr_pem = create_csr()
        answer = await ask(csr_pem)
        try:
            svid = Svid.from_pem(
                chain=answer.certificate_chain_pem.encode(),
                private_key=private_key_pem,
                trust_bundle=answer.trust_bundle_pem.encode(),
            )
        except InvalidInputError as exc:
            raise UnavailableError("svid_answer_invalid", f"controller's answer: {exc.message}") from exc
        self._check(svid)
        await asyncio.to_thread(stored.save, self._state_directory, svid)
        if ask == self._attest:
            self._attestation.accepted()  # after the SVID is safe on disk: a crash between needs no new token
        self._holder.put(svid)
        _LOG.info("identity obtained", extra={"spiffe_id": str(svid.spiffe_id), "expires": svid.expires_at})

    def _check(self, svid: Svid) -> None:
        if svid.spiffe_id != self._spiffe_id:
            raise UnavailableError(
                "svid_answer_invalid", f"asked for {self._spiffe_id}, the controller gave {svid.spiffe_id}"
            )
        if not svid.valid_at(self._clock()):
            raise UnavailableError("svid_answer_invalid", "the controller gave a certificate not valid now")

    async def _renew(self, csr_pem: bytes) -> identity_pb2.Svid:
        channel = PeerChannel(
            self, self._controller_endpoint, self._controller.dns_name, timeout_s=_CALL_TIMEOUT_S
        )
        try:
            stub = channel.stub(identity_pb2_grpc.WorkloadIdentityStub)
            with mapped_errors():
                return (await stub.Renew(identity_pb2.RenewRequest(csr_pem=csr_pem.decode()))).svid
        finally:
            await channel.close()

    async def _attest(self, csr_pem: bytes) -> identity_pb2.Svid:
        request = self._attestation.request(csr_pem)
        credentials = grpc.ssl_channel_credentials(self._pinned_roots())
        options = [
            ("grpc.ssl_target_name_override", self._controller.dns_name),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.secure_channel(self._bootstrap_endpoint, credentials, options=options) as channel:
            stub = identity_pb2_grpc.WorkloadIdentityStub(channel)
            try:
                with mapped_errors():
                    return (await stub.Attest(request, timeout=_CALL_TIMEOUT_S)).svid
            except UnauthenticatedError:
                self._attestation.refused()
                raise

    def _pinned_roots(self) -> bytes:
        try:
            with self._trust_bundle_file.open("rb") as file:
                return file.read(_MAX_BUNDLE_BYTES)
        except OSError as exc:
            message = f"cannot read the trust bundle {self._trust_bundle_file}"
            raise UnavailableError("trust_bundle_unavailable", message) from exc

    def _take_stored(self) -> None:
        try:
            svid = stored.load(self._state_directory)
            if svid is None:
                return
            self._check(svid)
            if not svid.issued_under(self._pinned_roots()):
                raise UnavailableError(
                    "svid_answer_invalid", "the stored identity is not of the pinned roots"
                )
        except KarsError as error:
            _LOG.warning("stored identity not used", extra={"reason": error.reason, "error": error.message})
            return
        self._holder.put(svid)
