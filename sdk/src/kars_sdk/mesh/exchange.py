"""What receiving and sending share: what we owe to peers, whom we let rest, and what a person should know."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kars_sdk.mesh.names import PeerName

_LOG = logging.getLogger(__name__)
_RESEND_EVERY_S = 60.0
_MAX_RESENDS = 1024
_MAX_EVENTS = 256


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a person or an audit log should know. Never holds content."""

    kind: str
    peer: str
    reason: str


@dataclass
class Exchange:
    """The state between the task that reads and the task that hands in; nothing of it needs to be on disk."""

    clock: Callable[[], float]
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be something to hand in."""
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=_MAX_EVENTS))
    acks: dict[tuple[PeerName, bytes], set[int]] = field(default_factory=dict)
    """Numbers to acknowledge, by peer and stream. When they are lost, the peer sends again."""
    answers: deque[tuple[PeerName, bytes]] = field(default_factory=lambda: deque(maxlen=_MAX_EVENTS))
    """KNOCKs and rejections that are sealed already."""
    resend_due: set[PeerName] = field(default_factory=set)
    """Peers to ask for what we could not read."""
    resting: dict[PeerName, float] = field(default_factory=dict)
    """Peers that nothing is sent to until a time."""
    _asked: dict[PeerName, float] = field(default_factory=dict)

    @property
    def owes(self) -> bool:
        """Whether something waits that is no message of the application."""
        return bool(self.acks or self.answers or self.resend_due)

    def note(self, kind: str, peer: str, reason: str) -> None:
        """Keep an event."""
        self.events.append(Event(kind=kind, peer=peer, reason=reason))
        _LOG.debug("mesh: %s %s", kind, reason)

    def acknowledge(self, peer: PeerName, stream: bytes, numbers: Iterable[int]) -> None:
        """Owe an acknowledgement."""
        self.acks.setdefault((peer, stream), set()).update(numbers)

    def ask_again(self, peer: PeerName) -> None:
        """Owe a peer the question for what we could not read, at most once a minute."""
        now = self.clock()
        if now - self._asked.get(peer, 0) < _RESEND_EVERY_S:
            return
        if len(self._asked) >= _MAX_RESENDS:  # a relay may invent senders; it does not grow our memory
            self._asked = {each: at for each, at in self._asked.items() if now - at < _RESEND_EVERY_S}
        if len(self._asked) < _MAX_RESENDS:
            self._asked[peer] = now
            self.resend_due.add(peer)

    def rest(self, peer: PeerName, seconds: float) -> None:
        """Send nothing to a peer for a while."""
        self.resting[peer] = self.clock() + seconds

    def rested(self) -> set[PeerName]:
        """Return the peers that still rest; forgets those that do not."""
        now = self.clock()
        self.resting = {peer: until for peer, until in self.resting.items() if until > now}
        return set(self.resting)
