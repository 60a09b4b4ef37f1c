"""Pieces of Envoy configuration that doors share: the chain that every request passes, and its answers.

Order of the HTTP filters: bring the host into one form, blocklist, end of approvals, ask the service
(learning only), hand the decision to the tunnel, resolve with the address filter, connect. What not every
request needs is disabled except on routes that name it: a fifth of the throughput. So an exact name is
compared with the blocklist when it is compiled, and only names that match a wildcard or nothing when they are
asked for.
"""

from typing import Any

from kars_egress import addresses
from kars_egress.xds import types
from kars_egress.xds.types import typed

MAX_CONNECTIONS = 1024
"""Open connections of one sandbox; more are closed at once, and others do not notice."""
_HTTP = "envoy.extensions.filters.http"
_NETWORK = "envoy.extensions.filters.network"

_NOT_FROM_AGENTS = (
    types.HOST_HEADER,
    types.PORT_HEADER,
    *("x-forwarded-for", "x-forwarded-proto", "x-request-id", "proxy-authorization"),
    # What a metadata service takes as proof that nobody tricked the caller.
    *("metadata", "metadata-flavor", "x-metadata-token", "x-google-metadata-request"),
    *("x-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds"),
)

_LUA = f"""
function envoy_on_request(handle)
  local headers = handle:headers()
  local authority = string.lower(headers:get(":authority") or "")
  local host, port = string.match(authority, "^(.*):(%d+)$")
  if host == nil then
    host = authority
    port = headers:get(":method") == "CONNECT" and "443" or "80"
  end
  host = string.gsub(host, "%.$", "")
  headers:replace("{types.HOST_HEADER}", host)
  headers:replace("{types.PORT_HEADER}", port)
end
"""

_REASONS = (
    # What Envoy says about its own answer, and what we say to the agent.
    ("response.code_details.contains('[blocklist]')", 403, "blocklist", False),
    ("response.code_details.contains('[expired]')", 403, "approval_expired", True),
    ("response.code_details.contains('address_denied')", 403, "address_not_allowed", False),
    ("response.code_details.startsWith('dns_')", 502, "name_not_resolved", False),
    ("response.code_details.startsWith('ext_authz_error')", 503, "decision_unavailable", False),
    # No virtual host or no route: an allowlist is all that there is.
    ("response.code_details == 'route_not_found'", 403, "not_in_allowlist", True),
    ("response.code_details.startsWith('upstream_reset_before')", 502, "destination_unreachable", False),
)
_ASK = "ask an operator: kars egress -n <namespace> <sandbox> approve %REQ(:AUTHORITY)%{} --reason '<why>'"
_KINDS = (
    # A tunnel is for TLS; anything else is plain HTTP, which is approved as such.
    (" && request.method == 'CONNECT'", _ASK.format("")),
    ("", _ASK.format(" --scheme http")),
)
_NOTHING = "nobody can approve this; use another destination, or try later"


def http_filters(dns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chain that decides, the same at every door."""
    return [
        {
            **typed(
                types.NORMALISE_FILTER,
                f"{_HTTP}.lua.v3.Lua",
                source_codes={types.NORMALISE: {"inline_string": _LUA}},
            ),
            "disabled": True,
        },
        {
            "name": types.BLOCKLIST_FILTER,
            "config_discovery": {
                "config_source": ads(),
                "type_urls": [f"{types.PREFIX}{_HTTP}.rbac.v3.RBAC"],
            },
        },
        {**typed(types.TIME_FILTER, f"{_HTTP}.rbac.v3.RBAC"), "disabled": True},
        {**_authz(), "disabled": True},
        {
            **typed(types.HAND_OVER_FILTER, f"{_HTTP}.set_filter_state.v3.Config"),
            "disabled": True,
        },
        typed(
            "envoy.filters.http.dynamic_forward_proxy",
            f"{_HTTP}.dynamic_forward_proxy.v3.FilterConfig",
            dns_cache_config=dns,
        ),
        typed("envoy.filters.http.router", f"{_HTTP}.router.v3.Router", suppress_envoy_headers=True),
    ]


def connection_manager(
    stat_prefix: str, logs: list[dict[str, Any]], dns: dict[str, Any], **routes: object
) -> dict[str, Any]:
    """Return the HTTP connection manager of a door; `routes` says where its routes come from."""
    return typed(
        "envoy.filters.network.http_connection_manager",
        f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=stat_prefix,
        codec_type="HTTP1",
        http_filters=http_filters(dns),
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        access_log=logs,
        early_header_mutation_extensions=[_take_off()],
        local_reply_config=_answers(),
        server_name="kars-egress",
        strip_trailing_host_dot=True,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        # An unfinished head is a slot that somebody else cannot have.
        request_headers_timeout="5s",
        stream_idle_timeout="300s",
        delayed_close_timeout="0.1s",
        max_request_headers_kb=32,
        common_http_protocol_options={
            "idle_timeout": "60s",
            "headers_with_underscores_action": "REJECT_REQUEST",
            "max_headers_count": 100,
        },
        generate_request_id=False,
        **routes,
    )


def connection_limit() -> dict[str, Any]:
    """Return the bound on open connections of one door."""
    return typed(
        "envoy.filters.network.connection_limit",
        f"{_NETWORK}.connection_limit.v3.ConnectionLimit",
        stat_prefix="door",
        max_connections=MAX_CONNECTIONS,
    )


def ads() -> dict[str, Any]:
    """Return "from this service"."""
    return {"ads": {}, "resource_api_version": "V3"}


def dns_cache(resolver: tuple[str, int]) -> dict[str, Any]:
    """Return how names are resolved: by one pinned resolver, private answers dropped before anybody connects.

    The filter is at the cache because a check after the choice of an address sees only the first one that is
    tried.
    """
    return {
        "name": "direct",
        "dns_lookup_family": "ALL",
        "dns_refresh_rate": "60s",
        "dns_min_refresh_rate": "5s",
        "host_ttl": "120s",
        "dns_query_timeout": "5s",
        "max_hosts": 8192,
        "resolved_address_filter": {"ranges": [cidr(block) for block in (*addresses.IPV4, *addresses.IPV6)]},
        "typed_dns_resolver_config": typed(
            "envoy.network.dns_resolver.cares",
            "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            resolvers=[{"socket_address": {"address": resolver[0], "port_value": resolver[1]}}],
            dns_resolver_options={"no_default_search_domain": True},
        ),
    }


def cidr(block: str) -> dict[str, Any]:
    """Return an address block in Envoy's form."""
    prefix, _, length = block.partition("/")
    return {"address_prefix": prefix, "prefix_len": int(length)}


def _authz() -> dict[str, Any]:
    return typed(
        types.AUTHZ_FILTER,
        f"{_HTTP}.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        failure_mode_allow=False,
        status_on_error={"code": "ServiceUnavailable"},
        grpc_service={"envoy_grpc": {"cluster_name": types.CONTROL_CLUSTER}, "timeout": "1s"},
    )


def _take_off() -> dict[str, Any]:
    """Take off what only we may say, and what must not reach an origin, before anybody reads it."""
    return typed(
        "envoy.http.early_header_mutation.header_mutation",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"remove": name} for name in _NOT_FROM_AGENTS],
    )


def _answers() -> dict[str, Any]:
    """Return what an agent reads when it is refused: what, which rule, what to do next."""
    mappers = [
        _mapper(expression + kind, status, reason, step)
        for expression, status, reason, askable in _REASONS
        for kind, step in (_KINDS if askable else (("", _NOTHING),))
    ]
    mappers.append(_mapper("response.code_details == 'direct_response'", 403, "%ROUTE_NAME%", _NOTHING))
    return {"mappers": mappers}


def _mapper(expression: str, status: int, reason: str, next_step: str) -> dict[str, Any]:
    return {
        "filter": {
            "extension_filter": typed(
                "cel",
                "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                expression=expression,
            )
        },
        "status_code": status,
        "headers_to_add": [
            {
                "header": {"key": "x-kars-reason", "value": reason},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
        "body_format_override": {
            "json_format": {
                "error": "egress_denied",
                "reason": reason,
                "rule": "%ROUTE_NAME%",
                "host": "%REQ(:AUTHORITY)%",
                "next_step": next_step,
            }
        },
    }
