"""The registration log: what the registry said, in an order that it cannot take back."""

from kars_relay.transparency.log import RegistrationLog

__all__ = ["RegistrationLog"]
