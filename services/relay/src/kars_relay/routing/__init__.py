"""From a connection to a mailbox and back: who is attached, what is accepted, what is delivered."""

from kars_relay.routing.exchange import Accepted, Exchange, Refusal
from kars_relay.routing.hub import Hub
from kars_relay.routing.session import Session, SessionLimits, Transport

__all__ = ["Accepted", "Exchange", "Hub", "Refusal", "Session", "SessionLimits", "Transport"]
