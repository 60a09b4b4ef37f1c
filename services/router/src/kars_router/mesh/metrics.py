"""Counters of the mesh. Labels come from a closed set; peers are no labels."""

from prometheus_client import CollectorRegistry, Counter


class MeshMetrics:
    """What passed the bridge."""

    def __init__(self, registry: CollectorRegistry, sandbox: str) -> None:
        self._sent = Counter("kars_mesh_messages_sent", "Envelopes handed to the relay", registry=registry)
        self._received = Counter(
            "kars_mesh_messages_received", "Envelopes passed to the agent", registry=registry
        )
        self._refused = Counter(
            "kars_mesh_messages_refused", "Envelopes of peers that may not write here", registry=registry
        )
        self._frames = Counter(
            "kars_mesh_frames", "Frames", ["sandbox", "direction", "type"], registry=registry
        )
        self._sandbox = sandbox

    def frame(self, direction: str, kind: str, envelopes: int) -> None:
        """Count a frame; all words are this package's own."""
        self._frames.labels(self._sandbox, direction, kind).inc()
        {"sent": self._sent, "received": self._received, "refused": self._refused}[direction].inc(envelopes)
