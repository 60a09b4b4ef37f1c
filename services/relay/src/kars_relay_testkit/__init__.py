"""What tests and benchmarks need of a mesh: an organisation, a relay process, and peers without a ratchet.

Never imported by the service; not in its wheel.
"""

from kars_relay_testkit.client import PeerStream, Received, channel
from kars_relay_testkit.process import RelayProcess
from kars_relay_testkit.world import MeshWorld, TestPeer, edges

__all__ = ["MeshWorld", "PeerStream", "Received", "RelayProcess", "TestPeer", "channel", "edges"]
