"""The rules: what a bundle may say, and that a wrong one changes nothing."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars.mesh.v1 import policy_pb2
from kars.policy.v1 import policy_pb2 as bundle_pb2
from kars_common.errors import KarsError, PermissionDeniedError
from kars_common.policy import canonical_payload
from kars_common.spiffe import SpiffeId
from kars_relay.authorization import MAIN, SEALED
from kars_relay.policy import Edge, EdgeIndex, MeshPolicy
from kars_relay.settings import RelaySettings
from kars_relay_testkit import MeshWorld, edges

WORLD = MeshWorld()
A, B = (f"spiffe://kars.local/ns/team/sandbox/{name}" for name in "ab")


def applied(policy: MeshPolicy, mesh: policy_pb2.MeshRules | None) -> None:
    bundle = bundle_pb2.PolicyBundle(version=1, mesh=mesh)
    policy.apply(bundle, canonical_payload(bundle))


def test_without_rules_everything_is_refused() -> None:
    with pytest.raises(PermissionDeniedError) as refused:
        MeshPolicy("kars.local").require()
    assert refused.value.reason == "no_policy_in_force"


def test_a_wrong_bundle_is_refused_and_the_one_in_force_stays() -> None:
    policy = MeshPolicy("kars.local")
    applied(policy, WORLD.rules(edges((A, B))))
    held = policy.rules
    good = WORLD.rules([])
    wrong: list[policy_pb2.MeshRules | None] = [None]
    for change in (
        lambda m: m.ClearField("default_quota"),
        lambda m: m.edges.extend(edges(("spiffe://kars.local/ns/te*m/sandbox/a", B))),
        lambda m: m.edges.extend(edges(("team", B))),
        lambda m: m.edges.extend(edges((A, B), score=1001)),
        lambda m: m.peer_quotas.extend([policy_pb2.PeerQuota(peer=A)] * 2),
        lambda m: m.default_quota.MergeFrom(policy_pb2.MeshQuota(sender_share_percent=101)),
        lambda m: m.statement_keys.extend(list(m.statement_keys)),
        lambda m: m.statement_keys.add(key_id="x", public_key=b"short", trust_domain="kars.local"),
        lambda m: m.sealed_recipients.append("*"),
        lambda m: m.federated_domains.add(trust_domain="kars.local"),
        lambda m: m.federated_domains.add(trust_domain="east.example", trust_bundle_pem="no PEM"),
        lambda m: setattr(m, "max_ttl_s", 1),
    ):
        message = policy_pb2.MeshRules()
        message.CopyFrom(good)
        change(message)
        wrong.append(message)
    for mesh in wrong:
        with pytest.raises(KarsError):
            applied(policy, mesh)
    assert policy.rules is held
    assert policy.epoch == 1


def test_an_edge_is_directed_ends_in_time_and_the_highest_score_counts() -> None:
    now = time.time()
    index = EdgeIndex(
        [
            (A, B, Edge(100, None)),
            (A, "spiffe://kars.local/ns/team/sandbox/*", Edge(700, now + 5)),
            (
                "spiffe://kars.local/ns/team/sandbox/*",
                "spiffe://kars.local/ns/team/sandbox/*",
                Edge(1, now - 5),
            ),
        ]
    )
    a, b = SpiffeId.parse(A), SpiffeId.parse(B)
    first, later = index.find(a, b, now), index.find(a, b, now + 10)
    assert first is not None
    assert later is not None
    assert (first.score, later.score) == (700, 100)
    assert index.find(b, a, now) is None
    assert index.find(a, a, now) is None


SEGMENT = st.sampled_from(["a", "b", "*"])
NAME = st.tuples(SEGMENT, SEGMENT)


@given(st.lists(st.tuples(NAME, NAME), max_size=6), st.sampled_from("ab"), st.sampled_from("ab"))
def test_patterns_stand_for_exactly_one_segment(
    pairs: list[tuple[tuple[str, str], tuple[str, str]]], one: str, other: str
) -> None:
    def name(parts: tuple[str, str]) -> str:
        return f"spiffe://kars.local/ns/{parts[0]}/sandbox/{parts[1]}"

    def fits(pattern: tuple[str, str], parts: tuple[str, str]) -> bool:
        return all(want in ("*", have) for want, have in zip(pattern, parts, strict=True))

    index = EdgeIndex((name(a), name(b), Edge(1, None)) for a, b in pairs)
    source, target = (one, "a"), (other, "b")
    expected = any(fits(a, source) and fits(b, target) for a, b in pairs)
    found = index.find(SpiffeId.parse(name(source)), SpiffeId.parse(name(target)), 0.0)
    assert (found is not None) == expected


def test_the_defaults_of_the_settings_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RelaySettings(state_dir="/s", policy_keys_file="/k", svid_dir="/i")
    shown = settings.model_dump(exclude={"state_dir", "policy_keys_file", "svid_dir"}, exclude_none=True)
    assert shown == {
        "log_level": "INFO", "trust_domain": "kars.local", "address": "127.0.0.1:0", "serve_registry": True,
        "nats_replicas": 1, "max_connections": 20_000, "connect_timeout_s": 10.0, "stall_s": 30.0,
        "sweep_s": 30.0, "prekey_caller_per_minute": 30, "prekey_peer_per_minute": 120,
        "prekey_window_s": 3600.0, "prekey_low_water": 10, "drain_s": 10.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="exactly one"):
        RelaySettings(state_dir="/s", policy_keys_file="/k")


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    from kars.mesh.v1 import registry_pb2, relay_pb2

    for file, service in ((relay_pb2, "Relay"), (relay_pb2, "RelayStatus"), (registry_pb2, "Registry")):
        methods = {
            f"kars.mesh.v1.{service}/{method.name}"
            for method in file.DESCRIPTOR.services_by_name[service].methods
        }
        governed = {
            name for name in MAIN.methods | SEALED.methods if name.startswith(f"kars.mesh.v1.{service}/")
        }
        assert methods == governed
