"""Compiles the policy of one sandbox into Envoy's routes.

One virtual host for all entries that mean the same. Envoy chooses the most specific virtual host and looks no
further, so each gets everything that holds for its pattern, from wider entries and approvals too: otherwise
an approval for `api.a.test` that ended would hide the permanent `*.a.test`. What matches nothing is refused
by Envoy itself, so a denial costs no memory. An approval is a condition on the proxy's clock: it ends there,
whoever else is alive. Names of routes say what decided; the log and the answers are made of them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from kars.egress.envoy import route_pb2

from kars_egress.credentials import Lookup
from kars_egress.policy.deciding import Listed
from kars_egress.policy.entries import Entry, HostPattern
from kars_egress.policy.hosts import Host, HostKind
from kars_egress.policy.sandboxes import SandboxPolicy
from kars_egress.xds import types

MAX_TUNNEL_S = 900
"""An open tunnel ends after this, and is asked for again: the bound on what a revocation misses."""
_ANYWHERE = HostPattern("place.invalid")
_NOT_FOR_THE_ORIGIN = (types.HOST_HEADER, types.PORT_HEADER, "x-forwarded-proto", "x-forwarded-client-cert")
_CONNECT = route_pb2.RouteMatch(connect_matcher=route_pb2.RouteMatch.ConnectMatcher())
_NORMALISE = types.any_of(
    "envoy.extensions.filters.http.lua.v3.LuaPerRoute", route_pb2.LuaPerRoute(name=types.NORMALISE)
)
_Kind = Literal["exact", "wildcard", "listed"]
ALLOW, ASK = "allow/", "ask/"
"""How names of routes begin that let something through."""


def _nothing(_: object) -> None:
    return None


@dataclass(frozen=True, slots=True)
class View:
    """What else a policy is compiled with."""

    listed: Listed = _nothing
    credential: Lookup = _nothing


@dataclass(frozen=True, slots=True)
class _Grant:
    """An entry and when it ends; infinity for the allowlist's."""

    entry: Entry
    until_s: float
    rule: str


def compile_routes(policy: SandboxPolicy, now_s: float, view: View) -> bytes:
    """Return the RouteConfiguration of a sandbox; what is listed is left out of it."""
    grants = [_Grant(entry, math.inf, "allowlist") for entry in policy.entries]
    for approval in policy.approvals:
        grants += [_Grant(entry, approval.expires_s, f"approval/{approval.id}") for entry in approval.entries]
    hosts = list(_virtual_hosts(policy, grants, now_s, view))
    rest = _rest(policy, now_s)
    if rest:
        hosts.append(route_pb2.VirtualHost(name="rest", domains=["*"], routes=rest))
    return route_pb2.RouteConfiguration(
        name=routes_name(policy), virtual_hosts=hosts, request_headers_to_remove=_NOT_FOR_THE_ORIGIN
    ).SerializeToString(deterministic=True)


def compile_scope(policy: SandboxPolicy, identity: str) -> bytes:
    """Return what leads a gateway from a proven identity to the sandbox's routes."""
    return route_pb2.ScopedRouteConfiguration(
        name=f"scope/{policy.sandbox}",
        route_configuration_name=routes_name(policy),
        key=route_pb2.ScopedRouteConfiguration.Key(
            fragments=[route_pb2.ScopedRouteConfiguration.Key.Fragment(string_key=identity)]
        ),
    ).SerializeToString(deterministic=True)


def routes_name(policy: SandboxPolicy) -> str:
    """Return the name under which Envoy asks for the routes."""
    return f"sandbox/{policy.sandbox}"


def _virtual_hosts(
    policy: SandboxPolicy, grants: list[_Grant], now_s: float, view: View
) -> Iterable[route_pb2.VirtualHost]:
    own: dict[HostPattern, list[_Grant]] = defaultdict(list)
    for grant in grants:
        own[grant.entry.pattern].append(grant)
    wide = [grant for grant in grants if grant.entry.pattern.wildcard]
    same: dict[tuple[_Kind, tuple[_Grant, ...]], list[str]] = defaultdict(list)
    for pattern in sorted(own, key=str):
        covering = [g for g in wide if g.entry.pattern != pattern and g.entry.pattern.covers(pattern)]
        for form in sorted({form for grant in own[pattern] for form in _forms(grant.entry)}):
            holding = [grant for grant in (*own[pattern], *covering) if form in _forms(grant.entry)]
            if policy.learning_until_s > now_s:
                # A route that ended denies, and Envoy does not try the next: the service is asked instead.
                holding = [grant for grant in holding if grant.until_s >= policy.learning_until_s]
            same[_kind(pattern, view.listed), _meaning(holding)].append(f"{pattern}{form}")
    for number, ((kind, meaning), domains) in enumerate(same.items()):
        routes = _listed_routes() if kind == "listed" else _routes(policy, kind, meaning, now_s, view)
        yield route_pb2.VirtualHost(name=str(number), domains=domains, routes=routes)


def _forms(entry: Entry) -> tuple[str, ...]:
    """Return what follows a host's name where an agent asks for it."""
    if entry.upstream_tls and entry.port == 443:
        return ("",)
    if entry.scheme == "http" and entry.port == 80:
        return ("", ":80")
    return (f":{entry.port}",)


def _kind(pattern: HostPattern, listed: Listed) -> _Kind:
    if listed(Host(pattern.suffix, HostKind.NAME)) is not None:
        return "listed"
    return "wildcard" if pattern.wildcard else "exact"


def _meaning(holding: list[_Grant]) -> tuple[_Grant, ...]:
    """Reduce grants to what they do at one place: the host is the virtual host's business."""
    reduced: dict[Entry, _Grant] = {}
    for grant in holding:
        entry = replace(grant.entry, pattern=_ANYWHERE, port=0)
        known = reduced.get(entry)
        if known is None or known.until_s < grant.until_s:
            reduced[entry] = _Grant(entry, grant.until_s, grant.rule)
    # What never ends goes first: a route that ended denies, and Envoy does not try the next.
    return tuple(sorted(reduced.values(), key=lambda grant: (-grant.until_s, str(grant.entry))))


def _routes(
    policy: SandboxPolicy, kind: _Kind, meaning: tuple[_Grant, ...], now_s: float, view: View
) -> list[route_pb2.Route]:
    routes: list[route_pb2.Route] = []
    for grant in meaning:
        secret = view.credential(grant.entry.credential) if grant.entry.credential else None
        if grant.entry.credential and secret is None:
            continue  # without its secret a request would say something else
        for match in _matches(grant.entry):
            route = route_pb2.Route(name=ALLOW + grant.rule, match=match, route=_action(grant, now_s))
            if math.isfinite(grant.until_s):
                route.typed_per_filter_config[types.TIME_FILTER].CopyFrom(_until(grant.until_s))
            if secret is not None:
                # Overwrites: what the agent put there is not sent.
                header = route_pb2.HeaderValue(key=secret[0], value=secret[1])
                route.request_headers_to_add.add(header=header, append_action=2)
            _enable(policy, route, compare=kind == "wildcard")
            routes.append(route)
    return routes + _rest(policy, now_s)


def _listed_routes() -> list[route_pb2.Route]:
    return [
        route_pb2.Route(
            name="blocklist", match=match, direct_response=route_pb2.DirectResponseAction(status=403)
        )
        for match in (_CONNECT, route_pb2.RouteMatch(prefix="/"))
    ]


def _enable(policy: SandboxPolicy, route: route_pb2.Route, *, compare: bool) -> None:
    """Turn on what this route needs: the host in one form (for the blocklist), the tunnel's instructions."""
    tunnel = route.match.HasField("connect_matcher")
    if tunnel or compare:
        route.typed_per_filter_config[types.NORMALISE_FILTER].CopyFrom(_NORMALISE)
    if tunnel:
        route.typed_per_filter_config[types.HAND_OVER_FILTER].CopyFrom(_hand_over(policy))


def _matches(entry: Entry) -> list[route_pb2.RouteMatch]:
    if entry.scheme == "https":
        return [_CONNECT]
    found = []
    for method in entry.methods or (None,):
        headers = [_header(":scheme", "http")]
        if method is not None:
            headers.append(_header(":method", method))
        for path in entry.paths or ("/",):
            if path.endswith("/"):
                found.append(route_pb2.RouteMatch(prefix=path, headers=headers))
            else:
                found.append(route_pb2.RouteMatch(path=path, headers=headers))
                found.append(route_pb2.RouteMatch(prefix=f"{path}/", headers=headers))
    return found


def _header(name: str, value: str) -> route_pb2.HeaderMatcher:
    return route_pb2.HeaderMatcher(name=name, string_match=route_pb2.StringMatcher(exact=value))


def _action(grant: _Grant, now_s: float) -> route_pb2.RouteAction:
    remaining_s = (
        min(MAX_TUNNEL_S, max(1, math.ceil(grant.until_s - now_s)))
        if math.isfinite(grant.until_s)
        else MAX_TUNNEL_S
    )
    action = route_pb2.RouteAction(
        cluster=_cluster(grant.entry),
        timeout=Duration(),
        max_stream_duration=route_pb2.RouteAction.MaxStreamDuration(
            max_stream_duration=Duration(seconds=remaining_s)
        ),
    )
    if grant.entry.scheme == "https":
        action.upgrade_configs.add(upgrade_type="CONNECT").connect_config.SetInParent()
    return action


def _cluster(entry: Entry) -> str:
    if entry.scheme == "https":
        return types.TUNNEL_CLUSTER
    return types.SECURE_CLUSTER if entry.upstream_tls else types.DIRECT_CLUSTER


def _rest(policy: SandboxPolicy, now_s: float) -> list[route_pb2.Route]:
    """Return what every virtual host ends in while a sandbox is learning: the question."""
    routes: list[route_pb2.Route] = []
    if policy.learning_until_s <= now_s:
        return routes
    for scheme in ("https", "http"):
        grant = _Grant(Entry(_ANYWHERE, 0, scheme), policy.learning_until_s, "learning")
        for match in _matches(grant.entry):
            route = route_pb2.Route(name=ASK + grant.rule, match=match, route=_action(grant, now_s))
            route.typed_per_filter_config[types.TIME_FILTER].CopyFrom(_until(grant.until_s))
            route.typed_per_filter_config[types.AUTHZ_FILTER].CopyFrom(_ask(policy))
            _enable(policy, route, compare=True)
            routes.append(route)
    return routes


def _hand_over(policy: SandboxPolicy) -> AnyMessage:
    """Tell the internal listener what was allowed, in a place that no client can write to."""

    def state(key: str, factory: str, text: str) -> route_pb2.FilterStateValue:
        source = route_pb2.SubstitutionFormatString(
            text_format_source=route_pb2.DataSource(inline_string=text)
        )
        return route_pb2.FilterStateValue(
            object_key=key, factory_key=factory, format_string=source, shared_with_upstream=1
        )

    host, port = "envoy.upstream.dynamic_host", "envoy.upstream.dynamic_port"
    return types.any_of(
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        route_pb2.SetFilterState(
            on_request_headers=[
                state(host, host, f"%REQ({types.HOST_HEADER})%"),
                state(port, port, f"%REQ({types.PORT_HEADER})%"),
                state("kars.egress.host", "envoy.string", f"%REQ({types.HOST_HEADER})%"),
                state("kars.egress.sandbox", "envoy.string", str(policy.sandbox)),
            ]
        ),
    )


def _until(end_s: float) -> AnyMessage:
    """Deny from a moment on, by the proxy's clock."""
    moment = datetime.fromtimestamp(end_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    now = route_pb2.Expr(
        select_expr=route_pb2.Expr.Select(
            operand=route_pb2.Expr(ident_expr=route_pb2.Expr.Ident(name="request")), field="time"
        )
    )
    end = route_pb2.Expr(
        call_expr=route_pb2.Expr.Call(
            function="timestamp",
            args=[route_pb2.Expr(const_expr=route_pb2.Expr.Constant(string_value=moment))],
        )
    )
    over = route_pb2.Expr(call_expr=route_pb2.Expr.Call(function="_>=_", args=[now, end]))
    everything = [route_pb2.Permission(any=True)]
    policy = route_pb2.Policy(permissions=everything, principals=everything, condition=over)
    rules = route_pb2.RbacRules(action=1, policies={"expired": policy})
    return types.any_of(
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        route_pb2.RbacPerRoute(rbac=route_pb2.RbacHttp(rules=rules)),
    )


def _ask(policy: SandboxPolicy) -> AnyMessage:
    settings = route_pb2.ExtAuthzPerRoute.CheckSettings(context_extensions={"sandbox": str(policy.sandbox)})
    return types.any_of(
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
        route_pb2.ExtAuthzPerRoute(check_settings=settings),
    )
