"""The current SVID of a source, and waiting for the next; shared by all sources."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from kars_common.errors import UnavailableError
from kars_common.svid import Svid

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the wall clock's time; certificates are judged by it."""
    return datetime.now(UTC)


class Holder:
    """Holds the current SVID. `put` in the event loop; `current` from any thread."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._svid: Svid | None = None
        self._changed = asyncio.Event()

    @property
    def held(self) -> Svid | None:
        """What was put last, expired or not."""
        return self._svid

    def current(self) -> Svid:
        """Return the SVID if it is valid now.

        Raises:
            UnavailableError: `svid_unavailable`.
        """
        svid = self._svid
        if svid is None:
            raise UnavailableError("svid_unavailable", "no identity was obtained yet")
        if self._clock() >= svid.expires_at:
            raise UnavailableError("svid_unavailable", f"the identity expired at {svid.expires_at:%FT%TZ}")
        return svid

    def put(self, svid: Svid) -> None:
        """Make an SVID the current one and wake who waits."""
        self._svid = svid
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def drop(self) -> None:
        """Forget the SVID: its issuer took it back."""
        self._svid = None

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """Wait until a valid SVID other than `previous` is held."""
        while True:
            svid = self._svid
            if svid is not None and svid != previous and self._clock() < svid.expires_at:
                return svid
            await self._changed.wait()
