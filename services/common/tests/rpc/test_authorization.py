"""The table of who may call what, and the walk that finds a gap in it either way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars.identity.v1 import identity_pb2_grpc
from kars.policy.v1 import policy_pb2_grpc
from kars_common.errors import KarsError
from kars_common.rpc import ANY_IDENTITY, ANYONE, AuthorizationTable, RpcServer
from kars_common.rpc.authorization import matches
from kars_common.spiffe import SpiffeId
from kars_common.testing import MemoryAuthority, StaticSvidSource

IDENTITY = "kars.identity.v1.WorkloadIdentity"
SEGMENTS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("svc/controller", "/svc/controller", True),
        ("svc/controller", "/svc/controller2", False),
        ("svc/controller", "/svc/controller/x", False),
        ("operator/*", "/operator/ana", True),
        ("operator/*", "/operator", False),
        ("operator/*", "/operator/ana/admin", False),
        ("ns/*/sandbox/*", "/ns/team/sandbox/writer", True),
        ("ns/*/sandbox/*", "/ns/team/other/writer", False),
        ("ns/team/sandbox/*", "/ns/other/sandbox/writer", False),
        ("*", "", False),
        (ANY_IDENTITY, "", True),
    ],
)
def test_pattern_names_whole_segments(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, SpiffeId.parse(f"spiffe://kars.local{path}")) is expected


@given(st.lists(SEGMENTS, min_size=1, max_size=5), st.lists(SEGMENTS, min_size=1, max_size=5))
def test_pattern_without_star_names_exactly_itself(pattern: list[str], path: list[str]) -> None:
    identity = SpiffeId("kars.local", tuple(path))
    assert matches("/".join(pattern), identity) is (pattern == path)


@pytest.mark.parametrize(
    "rules",
    [
        {"NoSlash": [ANYONE]},
        {"a.B/c/d": [ANYONE]},
        {"a.B/c": []},
        {"a.B/c": ["/svc/x"]},
        {"a.B/c": ["svc/x*"]},
        {"a.B/c": ["svc//x"]},
        {"a.B/c": [""]},
    ],
)
def test_rule_that_could_not_mean_what_it_says_is_refused(rules: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"must be|empty rule"):
        AuthorizationTable(rules)


def test_refusals_say_why() -> None:
    table = AuthorizationTable({"/a.B/C": ["svc/x"]})
    attempts = {
        "method_not_authorized": ("a.B/D", SpiffeId.service("kars.local", "x")),
        "caller_not_authorized": ("a.B/C", SpiffeId.service("kars.local", "y")),
        "trust_domain_not_accepted": ("a.B/C", SpiffeId.service("evil.local", "x")),
        "client_certificate_required": ("a.B/C", None),
    }
    for reason, (method, caller) in attempts.items():
        with pytest.raises(KarsError) as caught:
            table.check(method, caller, "kars.local")
        assert caught.value.reason == reason
    table.check("a.B/C", SpiffeId.service("kars.local", "x"), "kars.local")


async def test_walk_finds_methods_without_a_rule_and_rules_without_a_method() -> None:
    source = StaticSvidSource(MemoryAuthority().service("controller"))
    table = AuthorizationTable({f"{IDENTITY}/Renew": [ANY_IDENTITY], "a.B/Gone": [ANY_IDENTITY]})
    server = RpcServer(source, table, "127.0.0.1:0")
    server.add(
        identity_pb2_grpc.add_WorkloadIdentityServicer_to_server,
        identity_pb2_grpc.WorkloadIdentityServicer(),  # type: ignore[abstract]  # never called
    )
    without_rule, without_method = server.ungoverned()
    assert without_rule == {f"{IDENTITY}/Attest", f"{IDENTITY}/GetTrustBundle"}
    assert without_method == {"a.B/Gone"}


async def test_standard_services_of_both_listeners_are_governed() -> None:
    source = StaticSvidSource(MemoryAuthority().service("controller"))
    for server in (
        RpcServer(source, AuthorizationTable({}), "127.0.0.1:0"),
        RpcServer.bootstrap(source, AuthorizationTable({}), "127.0.0.1:0"),
    ):
        assert server.ungoverned() == (frozenset(), frozenset())


async def test_whole_table_of_a_service_is_sound_when_each_method_has_a_rule() -> None:
    source = StaticSvidSource(MemoryAuthority().service("controller"))
    names = ("Watch", "GetSigningKeys")
    table = AuthorizationTable({f"kars.policy.v1.PolicyDiscovery/{name}": ["svc/*"] for name in names})
    server = RpcServer(source, table, "127.0.0.1:0")
    server.add(
        policy_pb2_grpc.add_PolicyDiscoveryServicer_to_server,
        policy_pb2_grpc.PolicyDiscoveryServicer(),  # type: ignore[abstract]  # never called
    )
    assert server.ungoverned() == (frozenset(), frozenset())
