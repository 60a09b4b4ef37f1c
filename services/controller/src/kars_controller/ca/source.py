"""The controller's own identity, issued to itself by its authority and renewed at half life."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from kars_common.errors import UnavailableError
from kars_common.identity import Svid, create_csr
from kars_common.spiffe import SpiffeId

from kars_controller.ca.authority import SVID_LIFETIME, CertificateAuthority

_LOG = logging.getLogger(__name__)


class AuthoritySvidSource:
    """An `SvidSource` for whoever holds the authority."""

    def __init__(
        self,
        authority: CertificateAuthority,
        identity: SpiffeId,
        lifetime: timedelta = SVID_LIFETIME,
        on_renewed: Callable[[Svid], None] = lambda _svid: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Issue the first SVID at once.

        Args:
            authority: issues.
            identity: for whom.
            lifetime: of each SVID.
            on_renewed: called with every SVID, the first included; its failure ends `run`.
            now: what time it is.
        """
        self._authority = authority
        self._identity = identity
        self._lifetime = lifetime
        self._on_renewed = on_renewed
        self._now = now
        self._changed = asyncio.Event()
        self._svid = self._issue()

    def current(self) -> Svid:
        """Return the SVID in use.

        Raises:
            UnavailableError: `svid_unavailable` when it expired, which `run` prevents.
        """
        svid = self._svid
        if not svid.valid_at(self._now()):
            raise UnavailableError("svid_unavailable", "the controller's own identity expired")
        return svid

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """Wait until there is an SVID other than `previous`."""
        while self._svid == previous:
            await self._changed.wait()
        return self._svid

    async def run(self) -> None:
        """Renew at half life, for ever."""
        while True:
            wait_s = (self._svid.half_life_at() - self._now()).total_seconds()
            # In steps of a minute: a laptop that slept must not trust the monotonic clock for an hour.
            await asyncio.sleep(min(60.0, max(wait_s, 0.0)))
            if self._now() >= self._svid.half_life_at():
                self._svid = self._issue()
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
                _LOG.info("identity renewed", extra={"spiffe_id": str(self._identity)})

    def _issue(self) -> Svid:
        key_pem, csr_pem = create_csr()
        issued = self._authority.issue(csr_pem.decode(), self._identity, self._lifetime)
        svid = Svid.from_pem(
            chain=issued.chain_pem.encode(),
            private_key=key_pem,
            trust_bundle=self._authority.trust_bundle_pem.encode(),
        )
        self._on_renewed(svid)
        return svid
