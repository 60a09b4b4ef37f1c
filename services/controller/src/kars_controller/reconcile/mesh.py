"""The reconcilers of the mesh's kinds, and the keeper of the relay's bundle.

What counts here is what the relay enforces: a TrustGraph is Ready when its edges are in the bundle that the
relay acknowledged, and Degraded when an edge of it was rejected, with the reasons.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kars_common.errors import InvalidInputError
from kars_common.policy import PolicyRefusedError

from kars_controller.api_types import parse_spec
from kars_controller.api_types.auth_config import remarks as auth_remarks
from kars_controller.api_types.base import dig
from kars_controller.api_types.pairing import parse_time
from kars_controller.api_types.pairing import remarks as pairing_remarks
from kars_controller.compile import mesh as compiled
from kars_controller.distribution import Acknowledgement, PolicyPublisher, PolicySessions, Published
from kars_controller.mesh import Federation, GraphVerdict, MeshView, StatementKeys
from kars_controller.reconcile import conditions
from kars_controller.reconcile.conditions import Condition
from kars_controller.reconcile.plan import AWAITING_S, FAILED_S, STEADY_S, Plan
from kars_controller.resources import Document, ResourceKey, generation
from kars_controller.resources.timestamps import rfc3339

RELAY_KEY = ResourceKey("RelayBundle", "", "relay")
"""Queued like a resource: the bundle that is compiled from all of them."""

MESH_KINDS = ("TrustGraph", "KarsPairing", "KarsAuthConfig")


@dataclass(frozen=True, kw_only=True)
class RelayObserved:
    """What relays should enforce, and what they say they do."""

    published: Published | None
    answer: Acknowledgement
    problem: str = ""
    """Why the newest edges could not be published."""

    @property
    def enforces(self) -> bool:
        """Whether the newest bundle is in force."""
        return (
            self.published is not None
            and self.answer.connected
            and self.answer.digest == self.published.digest
        )


class MeshKeeper:
    """Publishes the relay's bundle, and reconciles the kinds that it is made from."""

    def __init__(
        self,
        *,
        view: MeshView,
        keys: StatementKeys,
        publisher: PolicyPublisher,
        sessions: PolicySessions,
        federation: Federation | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._view = view
        self._keys = keys
        self._publisher = publisher
        self._sessions = sessions
        self._federation = federation or Federation()
        self._now = now
        self._problem = ""

    def publish(self) -> tuple[bool, float]:
        """Bring the relay's bundle up to date.

        Returns:
            Whether it changed, and in how many seconds to look again.
        """
        now_s = self._now().timestamp()
        before = self._publisher.current(compiled.RELAY_SUBJECT)
        bundle = compiled.relay_bundle(
            self._view.edges(now_s), self._keys.messages(), self._federation.domains
        )
        try:
            published = self._publisher.publish(bundle)
        except PolicyRefusedError as exc:
            # What is in force stays; every graph says why its edges are not.
            changed, self._problem = self._problem != exc.message, exc.message
            return changed, STEADY_S
        self._problem = ""
        changed = before is None or published.digest != before.digest
        if changed:
            self._sessions.notify(compiled.RELAY_SUBJECT)
        next_s = self._view.next_change_s(now_s)
        return changed, STEADY_S if next_s is None else min(STEADY_S, max(0.05, next_s + 0.05))

    def reconcile(self, document: Document) -> Plan:
        """Return the status of a resource of the mesh's kinds."""
        try:
            spec = parse_spec(document)
        except InvalidInputError as exc:
            return self._plan(document, "Degraded", conditions.degraded("InvalidSpec", exc.message))
        if document["kind"] == "TrustGraph":
            return self._trust_graph(document)
        if document["kind"] == "KarsAuthConfig":
            return self._auth_config(document, spec)
        return self._pairing(document, spec)

    def _trust_graph(self, document: Document) -> Plan:
        verdict, now_s = self._view.verdict(document), self._now().timestamp()
        holding = verdict.holding(now_s)
        fields = {
            "validVertices": verdict.valid_vertices,
            "validEdges": len(holding),
            "invalidEdges": sum(verdict.rejected.values()),
            "inactiveEdges": len(verdict.edges) - len(holding),
        }
        phase, core = judge_graph(verdict, self._relay())
        return self._plan(document, phase, core, fields, next_s=verdict.next_change_s(now_s))

    def _auth_config(self, document: Document, spec: Any) -> Plan:  # noqa: ANN401 - a spec model
        without_effect = Condition.false("SpecEnforced", "NotEnforcedHere", "; ".join(auth_remarks(spec)))
        if spec.mesh_auth_backend == "EntraAgentIdentity":
            message = "there is no directory on this platform; nobody gets an agent identity"
            core = conditions.degraded("BackendNotSupported", message)
            return self._plan(document, "Degraded", (*core, without_effect))
        message = "mesh peers prove the workload identity that the controller issued"
        return self._plan(document, "Ready", (*conditions.ready("Reconciled", message), without_effect))

    def _pairing(self, document: Document, spec: Any) -> Plan:  # noqa: ANN401 - a spec model
        left_s = (parse_time(spec.expires_at) - self._now()).total_seconds()
        if left_s <= 0:
            core = conditions.degraded("Expired", f"it ended at {spec.expires_at}")
            return self._plan(document, "Expired", core, {"slotsUsed": 0})
        core = conditions.progressing("PairingNotServed", "; ".join(pairing_remarks(spec)))
        return self._plan(document, "PendingPairing", core, {"slotsUsed": 0}, next_s=left_s)

    def _relay(self) -> RelayObserved:
        return RelayObserved(
            published=self._publisher.current(compiled.RELAY_SUBJECT),
            answer=self._sessions.answer(compiled.RELAY_SUBJECT),
            problem=self._problem,
        )

    def _plan(
        self,
        document: Document,
        phase: str,
        core: Iterable[Condition],
        fields: dict[str, Any] | None = None,
        next_s: float | None = None,
    ) -> Plan:
        core = tuple(core)
        now = self._now()
        status: dict[str, Any] = {
            "phase": phase,
            "observedGeneration": generation(document),
            "conditions": conditions.stamped(document, core, now),
            **(fields or {}),
        }
        before = document.get("status") or {}
        same = {name: value for name, value in before.items() if name != "lastReconciledAt"} == status
        status["lastReconciledAt"] = (
            dig(before, "lastReconciledAt") if same and dig(before, "lastReconciledAt") else rfc3339(now)
        )
        requeue_s = FAILED_S if phase == "Degraded" else STEADY_S if phase == "Ready" else AWAITING_S
        if next_s is not None:
            requeue_s = min(requeue_s, max(0.05, next_s + 0.05))
        events = tuple(conditions.transition_events(document, core))
        return Plan(status=status, events=events, requeue_s=requeue_s)


def judge_graph(verdict: GraphVerdict, relay: RelayObserved) -> tuple[str, tuple[Condition, ...]]:
    """Return phase and core conditions of a TrustGraph."""
    if verdict.rejected:
        listed = ", ".join(f"{count} {reason}" for reason, count in verdict.rejected.items())
        return "Degraded", conditions.degraded("EdgesRejected", f"left out: {listed}; the other edges count")
    if relay.problem:
        return "Degraded", conditions.degraded(
            "PolicyTooLarge", f"the edges of all graphs together cannot be published: {relay.problem}"
        )
    if not relay.enforces:
        refused = relay.answer.refused
        if refused is not None and relay.published is not None and refused.digest == relay.published.digest:
            return "Degraded", conditions.degraded(
                "PolicyRefused", f"the relay refused it: {refused.reason}: {refused.message}"
            )
        return "Compiled", conditions.progressing(
            "AwaitingRelayEnforcement", "waiting for the relay to acknowledge the newest edges"
        )
    return "Ready", conditions.ready("RelayEnforcing", "the relay bridges these edges and no others")
