"""What is compiled decides as `decide` does: random policies, random requests, Envoy's matching order."""

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kars.egress.envoy import route_pb2
from kars_egress.policy.deciding import decide
from kars_egress.policy.entries import Entry
from kars_egress.policy.hosts import Target, canonical_host
from kars_egress.policy.sandboxes import Approval, SandboxId, SandboxPolicy
from kars_egress.xds import types
from kars_egress.xds.routes import View, compile_routes

NOW_S = 1_000_000.0
HOSTS = ["a.test", "b.a.test", "c.b.a.test", "d.test", "x.d.test"]
ENTRIES = st.builds(
    lambda host, wild, port, scheme, methods, paths, tls: Entry.build(
        f"*.{host}" if wild else host,
        port=port,
        scheme=scheme,
        methods=methods if scheme == "http" else (),
        paths=paths if scheme == "http" else (),
        upstream_tls=tls and scheme == "http",
    ),
    st.sampled_from(HOSTS),
    st.booleans(),
    st.sampled_from([0, 80, 443, 8080]),
    st.sampled_from(["https", "http"]),
    st.sampled_from([(), ("GET",), ("GET", "POST")]),
    st.sampled_from([(), ("/v1",), ("/v1/read/",)]),
    st.booleans(),
)
APPROVALS = st.builds(
    lambda number, entries, ends: Approval(
        id=f"a{number}", entries=tuple(entries), expires_s=NOW_S + ends, reason="why", granted_by="olga"
    ),
    st.integers(0, 9),
    st.lists(ENTRIES, min_size=1, max_size=3),
    st.sampled_from([-10.0, 10.0, 20.0]),
)
POLICIES = st.builds(
    lambda entries, approvals, learning: SandboxPolicy(
        SandboxId("team", "writer"),
        entries=tuple(entries),
        approvals=tuple(approvals),
        learning_until_s=NOW_S + 15 if learning else 0.0,
    ),
    st.lists(ENTRIES, max_size=5),
    st.lists(APPROVALS, max_size=3, unique_by=lambda approval: approval.id),
    st.booleans(),
)
TARGETS = st.builds(
    lambda scheme, host, port, path, method: Target(scheme, canonical_host(host), port, path, method),
    st.sampled_from(["https", "http"]),
    st.sampled_from([*HOSTS, "y.c.b.a.test", "z.test"]),
    st.sampled_from([80, 443, 8080]),
    st.sampled_from(["/", "/v1", "/v1/read/x", "/v1read"]),
    st.sampled_from(["GET", "POST", "DELETE"]),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(POLICIES, TARGETS, st.sampled_from([0.0, 12.0, 30.0]))
def test_routes_decide_as_the_rules_do(policy: SandboxPolicy, target: Target, later_s: float) -> None:
    """Compiled now, asked later: what ended meanwhile is refused by conditions that are in the routes."""
    live = policy.without_expired(NOW_S)
    compiled = route_pb2.RouteConfiguration.FromString(compile_routes(live, NOW_S, View()))
    expected = decide(policy, target, lambda _: None, NOW_S + later_s)
    allowed = envoy_allows(compiled, target, NOW_S + later_s)
    if allowed is None:  # Envoy asks the service, which calls `decide`
        assert expected.reason in {"approval", "learning", "port_not_learned"}
    else:
        assert allowed is expected.allowed


def envoy_allows(compiled: route_pb2.RouteConfiguration, target: Target, now_s: float) -> bool | None:
    """Match as Envoy documents it: exact domain, longest suffix, `*`; then the first route that matches."""
    authority = f"{target.host.text}:{target.port}"
    names = [authority]
    if target.scheme == "http" and target.port == 80:
        names = [target.host.text]  # what a client writes for the usual port
    domains = {domain: host for host in compiled.virtual_hosts for domain in host.domains}
    for name in names:
        matching = [d for d in domains if d.startswith("*.") and name.endswith(d[1:]) and name != d[1:]]
        chosen = name if name in domains else max(matching, key=len) if matching else "*"
        for route in domains[chosen].routes if chosen in domains else ():
            if matches(route.match, target):
                return outcome(route, now_s)
    return False


def matches(match: route_pb2.RouteMatch, target: Target) -> bool:
    if target.scheme == "https":
        return match.HasField("connect_matcher")
    if match.HasField("connect_matcher"):
        return False
    values = {":scheme": "http", ":method": target.method}
    if any(values[header.name] != header.string_match.exact for header in match.headers):
        return False
    return target.path == match.path if match.path else target.path.startswith(match.prefix)


def outcome(route: route_pb2.Route, now_s: float) -> bool | None:
    if route.HasField("direct_response"):
        return False
    condition = route.typed_per_filter_config.get(types.TIME_FILTER)
    if condition is not None:
        rbac = route_pb2.RbacPerRoute.FromString(condition.value).rbac.rules
        moment = (
            rbac.policies["expired"].condition.call_expr.args[1].call_expr.args[0].const_expr.string_value
        )
        end_s = time.mktime(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        if now_s >= end_s:
            return False
    return None if types.AUTHZ_FILTER in route.typed_per_filter_config else True


def test_the_same_policy_has_the_same_bytes() -> None:
    entries = [Entry.build("b.test"), Entry.build("a.test"), Entry.build("*.c.test", scheme="http")]
    one = SandboxPolicy(SandboxId("team", "writer"), entries=tuple(entries))
    other = SandboxPolicy(SandboxId("team", "writer"), entries=tuple(reversed(entries)))
    assert compile_routes(one, NOW_S, View()) == compile_routes(other, NOW_S, View())
