"""Across trust domains: mail and lookups, under the policy of both sides.

A relay proves itself to another with its own certificate and believes the other's roots about the other's
names only. Nothing is passed on: what came from one domain never leaves to a third.
"""

from kars_relay.federation.courier import Couriers
from kars_relay.federation.foreign import ForeignRegistries
from kars_relay.federation.trust import FederatedSource, FederationTable, proven_domain

__all__ = ["Couriers", "FederatedSource", "FederationTable", "ForeignRegistries", "proven_domain"]
