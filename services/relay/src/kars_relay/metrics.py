"""Prometheus metrics of the relay. Labels come from closed sets; no name of a peer is one."""

from collections.abc import Callable

from kars.mesh.v1 import relay_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge

from kars_relay.mailbox import Totals


class RelayMetrics:
    """Counts what the relay does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Counter(
            "kars_mesh_refused_envelopes", "Envelopes refused, by reason.", ["reason"], registry=registry
        )
        self._ended = Counter(
            "kars_mesh_attachments_ended", "Connections ended, by reason.", ["reason"], registry=registry
        )
        self._malformed = Counter(
            "kars_mesh_malformed_frames", "Frames that were no frames.", registry=registry
        )
        self._registry = registry
        self.refused_total = 0
        self.malformed_total = 0

    def watch(self, totals: Totals, connected: Callable[[], int]) -> None:
        """Show what others count."""
        for name, text, read in (
            ("kars_mesh_attached_peers", "Peers connected.", connected),
            ("kars_mesh_stored_envelopes", "Envelopes waiting.", lambda: totals.envelopes),
            ("kars_mesh_stored_bytes", "Bytes waiting.", lambda: totals.size_bytes),
            ("kars_mesh_accepted_envelopes", "Accepted since start.", lambda: totals.accepted),
            ("kars_mesh_duplicate_envelopes", "Duplicates since start.", lambda: totals.duplicates),
            ("kars_mesh_acked_envelopes", "Acknowledged since start.", lambda: totals.acked),
            ("kars_mesh_expired_envelopes", "Expired since start.", lambda: totals.expired),
        ):
            Gauge(name, text, registry=self._registry).set_function(read)

    def refused(self, reason: int, count: int) -> None:
        """Count refused envelopes."""
        self.refused_total += count
        name = relay_pb2.RefusalReason.Name(reason)  # type: ignore[arg-type]  # a number from the enum
        self._refused.labels(name.removeprefix("REFUSAL_REASON_").lower()).inc(count)

    def ended(self, reason: str) -> None:
        """Count an ended connection; reasons are our own codes."""
        self._ended.labels(reason).inc()

    def malformed(self) -> None:
        """Count a frame that was none."""
        self.malformed_total += 1
        self._malformed.inc()
