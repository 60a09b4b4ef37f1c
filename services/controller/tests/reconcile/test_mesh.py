"""What a TrustGraph's status says: the relay's word, rejected edges, time, and edges that do not fit."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.policy import bundles
from kars_controller import api_types, testing
from kars_controller.compile.mesh import RELAY_SUBJECT
from kars_controller.distribution import PolicyPublisher, PolicySessions
from kars_controller.mesh import MeshView, StatementKeys
from kars_controller.reconcile.mesh import MeshKeeper
from kars_controller.resources import ResourceKey, ResourceStore
from kars_controller.storage import Database

A, B = testing.Vertex("a"), testing.Vertex("b")
GRAPH = ResourceKey("TrustGraph", "", "team")


class Bench:
    def __init__(self, path: Path) -> None:
        self.clock = testing.Clock()
        self.database = Database(path / "r.db")
        self.store, self.sessions = ResourceStore(self.database), PolicySessions()
        self.publisher = PolicyPublisher(self.database, Ed25519PrivateKey.generate())
        self.keeper = MeshKeeper(
            view=MeshView(self.store, "kars.local"),
            keys=StatementKeys(path / "keys.json", "kars.local", timedelta(days=9), self.clock),
            publisher=self.publisher,
            sessions=self.sessions,
            now=self.clock,
        )
        for name in ("a", "b"):
            self.apply(testing.sandbox(name))

    def apply(self, document: dict[str, Any]) -> None:
        self.store.apply(api_types.admit(document).document)

    def now_s(self) -> int:
        return int(self.clock().timestamp())

    def status(self, key: ResourceKey = GRAPH) -> tuple[str, str]:
        plan = self.keeper.reconcile(self.store.get(key))
        return plan.status["phase"], plan.status["conditions"][0]["reason"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.database.close()


def test_ready_means_that_the_relay_enforces_exactly_these_edges(bench: Bench) -> None:
    bench.apply(testing.trust_graph((A, B), [A.trusts("b")]))
    assert bench.keeper.publish()[0]
    assert bench.status() == ("Compiled", "AwaitingRelayEnforcement")
    published = bench.publisher.current(RELAY_SUBJECT)
    assert published is not None
    with bench.sessions.open(
        RELAY_SUBJECT, version=published.version, digest=published.digest, admin_endpoint=""
    ):
        assert bench.status() == ("Ready", "RelayEnforcing")
        assert not bench.keeper.publish()[0]
        bench.apply(testing.trust_graph((A, B), [B.trusts("a")]))
        bench.keeper.publish()
        assert bench.status() == ("Compiled", "AwaitingRelayEnforcement")
    assert bench.status() == ("Compiled", "AwaitingRelayEnforcement")


def test_an_edge_that_ends_is_taken_out_when_its_time_has_come(bench: Bench) -> None:
    bench.apply(testing.trust_graph((A, B), [A.trusts("b", not_after=bench.now_s() + 30)]))
    changed, wait_s = bench.keeper.publish()
    assert (changed, 29 < wait_s < 31) == (True, True)
    bench.clock.advance(30)
    changed, _ = bench.keeper.publish()
    assert changed
    published = bench.publisher.current(RELAY_SUBJECT)
    assert published is not None
    assert not bundles.parse_payload(published.signed.payload).mesh.edges


def test_edges_that_do_not_fit_into_a_bundle_leave_the_last_ones_in_force_and_say_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.apply(testing.trust_graph((A, B), [A.trusts("b")]))
    bench.keeper.publish()
    before = bench.publisher.current(RELAY_SUBJECT)
    monkeypatch.setattr(bundles, "MAX_PAYLOAD_BYTES", 600)
    bench.apply(testing.trust_graph((A, B), [A.trusts("b"), B.trusts("a"), A.trusts("b", score=1)]))
    assert bench.keeper.publish()[0]
    assert bench.status() == ("Degraded", "PolicyTooLarge")
    assert bench.publisher.current(RELAY_SUBJECT) == before
    monkeypatch.undo()
    bench.keeper.publish()
    assert bench.status() == ("Compiled", "AwaitingRelayEnforcement")


def test_a_converged_graph_is_not_written_again(bench: Bench) -> None:
    bench.apply(testing.trust_graph((A, B), [A.trusts("b")]))
    first = bench.keeper.reconcile(bench.store.get(GRAPH)).status
    document = bench.store.get(GRAPH)
    bench.store.update_status(GRAPH, document["metadata"]["uid"], first)
    bench.clock.advance(100)
    assert bench.keeper.reconcile(bench.store.get(GRAPH)).status == first


def test_a_backend_that_is_not_here_degrades_and_a_pairing_says_that_nobody_serves_it(bench: Bench) -> None:
    spec = {
        "tenant": {"tenantId": "t"},
        "agentId": {"blueprintClientId": "c", "blueprintObjectId": "o"},
        "controller": {"managedIdentityClientId": "m", "managedIdentityResourceId": "r"},
    }
    auth = ResourceKey("KarsAuthConfig", "", "default")
    for backend, expected in (
        ("Anonymous", ("Ready", "Reconciled")),
        ("EntraAgentIdentity", ("Degraded", "BackendNotSupported")),
    ):
        bench.apply(testing.document("KarsAuthConfig", "default", {**spec, "meshAuthBackend": backend}))
        assert bench.status(auth) == expected
    pairing = {"tokenHash": "0f" * 32, "expiresAt": (bench.clock() + timedelta(hours=1)).isoformat()}
    bench.apply(testing.document("KarsPairing", "laptop", pairing))
    key = ResourceKey("KarsPairing", "default", "laptop")
    assert bench.status(key) == ("PendingPairing", "PairingNotServed")
    bench.clock.advance(3600)
    assert bench.status(key) == ("Expired", "Expired")
