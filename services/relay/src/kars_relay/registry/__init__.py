"""The directory: who is registered, their prekeys, what others think of them."""

from kars_relay.registry.database import RegistryDatabase
from kars_relay.registry.directory import Directory, Registered
from kars_relay.registry.prekeys import Prekeys, TakeLimits, Taken
from kars_relay.registry.reputation import Reputations, Standing

__all__ = [
    "Directory",
    "Prekeys",
    "Registered",
    "RegistryDatabase",
    "Reputations",
    "Standing",
    "TakeLimits",
    "Taken",
]
