"""The rules in force: compiled from the signed bundle, asked for every pair."""

from kars_relay.policy.edges import Edge, EdgeIndex
from kars_relay.policy.rules import FederatedDomain, MeshPolicy, Quota, Rules, compile_rules

__all__ = ["Edge", "EdgeIndex", "FederatedDomain", "MeshPolicy", "Quota", "Rules", "compile_rules"]
