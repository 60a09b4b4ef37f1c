"""Which edges resources make: graphs, sandboxes that list each other, and who stays out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kars_controller import api_types, testing
from kars_controller.mesh import MeshView
from kars_controller.resources import ResourceStore
from kars_controller.storage import Database

NOW = 1_800_000_000


class Bench:
    def __init__(self, path: Path) -> None:
        self.database = Database(path / "r.db")
        self.store = ResourceStore(self.database)
        self.view = MeshView(self.store, "kars.local")

    def apply(self, document: dict[str, Any]) -> None:
        self.store.apply(api_types.admit(document).document)

    def sandbox(self, name: str, namespace: str = "default", *, trusts: str = "", **more: Any) -> None:
        governance = {"enabled": False, "trustedPeers": trusts} if trusts else {"enabled": False}
        governance |= more.pop("governance", {})
        document = testing.sandbox(name, governance=governance, **more)
        document["metadata"]["namespace"] = namespace
        self.apply(document)

    def pairs(self, now: int = NOW) -> set[tuple[str, str, int]]:
        return {
            ("/".join(e.sender.segments[1::2]), "/".join(e.recipient.segments[1::2]), e.score)
            for e in self.view.edges(now)
        }


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.database.close()


def test_two_that_list_each_other_may_talk(bench: Bench) -> None:
    bench.sandbox("a", trusts="b")
    bench.sandbox("b", trusts="default/a:abcdef")
    assert bench.pairs() == {("default/a", "default/b", 700), ("default/b", "default/a", 700)}


def test_listing_somebody_opens_no_way_to_them(bench: Bench) -> None:
    bench.sandbox("victim", "other")
    bench.sandbox("a", trusts="other/victim")
    # The victim may write to who lists it; nothing leads to the victim, and no score speaks for it.
    assert bench.pairs() == {("other/victim", "default/a", 0)}
    document = next(d for d in bench.store.list_kind("KarsSandbox") if d["metadata"]["name"] == "a")
    assert bench.view.of(document, NOW).one_sided == ("spiffe://kars.local/ns/other/sandbox/victim",)


def test_a_graph_counts_for_sandboxes_that_exist_and_while_it_does(bench: Bench) -> None:
    writer, reader = testing.Vertex("writer"), testing.Vertex("reader")
    bench.apply(testing.trust_graph((writer, reader), [writer.trusts("reader"), reader.trusts("writer")]))
    bench.sandbox("writer")
    assert bench.pairs() == set()
    bench.sandbox("reader")
    assert len(bench.pairs()) == 2
    bench.apply(testing.trust_graph((writer, reader), [writer.trusts("reader")]))
    assert bench.pairs() == {("default/writer", "default/reader", 800)}


@pytest.mark.parametrize(("mode", "expected"), [("local", 0), ("global", 1)])
def test_only_a_sandbox_with_the_global_registry_talks_beyond_its_trust_domain(
    bench: Bench, mode: str, expected: int
) -> None:
    foreign = testing.Vertex("spiffe://partner.example/ns/x/sandbox/y")
    bench.apply(testing.trust_graph((foreign, testing.Vertex("a")), [foreign.trusts("a")]))
    bench.sandbox("a", governance={"registryMode": mode})
    assert len(bench.pairs()) == expected


def test_an_edge_between_two_foreign_domains_is_none_of_ours(bench: Bench) -> None:
    one = testing.Vertex("spiffe://one.example/ns/x/sandbox/y")
    two = testing.Vertex("spiffe://two.example/ns/x/sandbox/y")
    bench.apply(testing.trust_graph((one, two), [one.trusts(two.name)]))
    assert bench.view.edges(NOW) == ()


def test_agent_id_without_a_directory_stays_out_instead_of_becoming_anonymous(bench: Bench) -> None:
    bench.sandbox("a", trusts="b", meshAuth={"mode": "AgentId"})
    bench.sandbox("b", trusts="a")
    assert bench.pairs() == set()
    document = next(d for d in bench.store.list_kind("KarsSandbox") if d["metadata"]["name"] == "a")
    assert "KarsAuthConfig/default" in bench.view.of(document, NOW).unavailable


def test_a_sandbox_that_is_being_deleted_has_no_edges(bench: Bench) -> None:
    bench.sandbox("a", trusts="b")
    bench.sandbox("b", trusts="a")
    key = next(d for d in bench.store.list_kind("KarsSandbox") if d["metadata"]["name"] == "b")
    from kars_controller.resources import ResourceKey

    bench.store.add_finalizer(ResourceKey.of(key), key["metadata"]["uid"], "test/hold")
    bench.store.delete(ResourceKey.of(key))
    assert bench.pairs() == set()
