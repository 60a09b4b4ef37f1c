"""The link to the controller: identity, policy, approvals, witness, and the server for operators.

Everything here may be absent. Without a controller the router enforces the last
policy that it was given; without any, it denies.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from kars_common.errors import KarsError, UnavailableError
from kars_common.identity import FileSvidSource, Svid, SvidSource
from kars_common.policy import PolicyWatch, load_keys
from kars_common.rpc import PeerChannel
from kars_common.spiffe import SpiffeId

from kars_router.settings import RouterSettings

if TYPE_CHECKING:
    from kars_router.app import RouterApp

_log = logging.getLogger(__name__)


class NoIdentity:
    """The source of a router that was given no way to get an identity."""

    def current(self) -> Svid:
        """Refuse.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError("svid_unavailable", "this router was given no source of identity")

    async def wait_changed(self, previous: Svid | None) -> Svid:  # noqa: ARG002 - the Protocol's
        """Wait for ever."""
        await asyncio.Event().wait()
        return self.current()

    async def run(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


class ControllerLink:
    """Owns every connection between this router and the rest of kars."""

    def __init__(self, settings: RouterSettings, app: "RouterApp") -> None:
        self._settings = settings
        self._app = app
        self._source: SvidSource = FileSvidSource(settings.svid_dir) if settings.svid_dir else NoIdentity()
        dns_name = SpiffeId.service(settings.trust_domain, "controller").dns_name
        self._channel = PeerChannel(self._source, settings.controller_endpoint or "127.0.0.1:0", dns_name)
        self.watch = PolicyWatch(
            self._channel,
            (settings.namespace, settings.sandbox),
            load_keys(settings.policy_keys_file),
            settings.state_dir / "policy",
            app.apply,
        )

    @property
    def has_identity(self) -> bool:
        """True when an SVID is held, or none was ever configured."""
        if isinstance(self._source, NoIdentity):
            return True
        try:
            self._source.current()
        except KarsError:
            return False
        return True

    def load_policy(self) -> None:
        """Bring the last known good policy into force, if there is one."""
        if self.watch.load() is not None:
            self._app.door.last_known_good = True

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start the long-running tasks."""
        return [group.create_task(self._source.run(), name="identity")]

    async def stop(self) -> None:
        """Close connections."""
        await self._channel.close()
