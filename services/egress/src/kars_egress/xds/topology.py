"""The listeners and clusters of an Envoy: the doors of each sandbox, the tunnel check, the way out.

A door is opened inside the sandbox's own network namespace, so which listener accepted a connection proves
whose it is. All doors lead to the same routes: the explicit proxy, plain HTTP that was captured, and TLS that
was captured, whose server name is turned into the CONNECT that the agent did not send.
"""

from dataclasses import dataclass
from typing import Any

from kars_egress.policy.sandboxes import SandboxPolicy
from kars_egress.xds import fragments, routes, types
from kars_egress.xds.types import typed

PROXY_PORT = 3128
_NETWORK = "envoy.extensions.filters.network"
_INSPECT_TLS = typed(
    "envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one Envoy runs."""

    resolver: tuple[str, int]
    """The one name server that it asks."""
    roots_file: str
    """PEM roots that hosts are verified with where it speaks TLS itself."""
    log_file: str
    """Where it writes a line for each request; the record that audit is made of."""


def shared_clusters(place: Place) -> dict[str, dict[str, Any]]:
    """Return the clusters that every sandbox uses."""
    return {
        types.DIRECT_CLUSTER: {
            "name": types.DIRECT_CLUSTER,
            "connect_timeout": "5s",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": typed(
                "envoy.clusters.dynamic_forward_proxy",
                "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                dns_cache_config=fragments.dns_cache(place.resolver),
            ),
            "circuit_breakers": _breakers(),
        },
        types.SECURE_CLUSTER: _secure(place),
        types.TUNNEL_CLUSTER: _internal_cluster(types.TUNNEL_CLUSTER, "tunnel"),
    }


def _secure(place: Place) -> dict[str, Any]:
    """Return the way out with TLS: the certificate must be the host's, by the roots of this place."""
    tls = typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={"validation_context": {"trusted_ca": {"filename": place.roots_file}}},
    )
    options = {
        "@type": f"{types.PREFIX}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "upstream_http_protocol_options": {"auto_sni": True, "auto_san_validation": True},
    }
    return {
        "name": types.SECURE_CLUSTER,
        "connect_timeout": "5s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": typed(
            "envoy.clusters.dynamic_forward_proxy",
            "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
            dns_cache_config=fragments.dns_cache(place.resolver),
        ),
        "transport_socket": tls,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "circuit_breakers": _breakers(),
    }


def shared_listeners(place: Place) -> dict[str, dict[str, Any]]:
    """Return the internal listener behind every CONNECT: TLS must ask for the host that was allowed."""
    same_name = _call("_==_", _field("connection", "requested_server_name"), _call("string", _state()))
    check = typed(
        "envoy.filters.network.rbac",
        f"{_NETWORK}.rbac.v3.RBAC",
        stat_prefix="tunnel",
        rules={
            "action": "ALLOW",
            "policies": {
                "server-name-is-connect-host": {
                    "permissions": [{"any": True}],
                    "principals": [{"any": True}],
                    "condition": same_name,
                    "cel_config": {"enable_string_conversion": True},
                }
            },
        },
    )
    resolve = typed(
        "envoy.filters.network.sni_dynamic_forward_proxy",
        f"{_NETWORK}.sni_dynamic_forward_proxy.v3.FilterConfig",
        port_value=443,
        dns_cache_config=fragments.dns_cache(place.resolver),
    )
    connect = typed(
        "envoy.filters.network.tcp_proxy",
        f"{_NETWORK}.tcp_proxy.v3.TcpProxy",
        stat_prefix="tunnel",
        cluster=types.DIRECT_CLUSTER,
        idle_timeout="300s",
    )
    return {
        "tunnel": {
            "name": "tunnel",
            "internal_listener": {},
            "listener_filters": [_INSPECT_TLS],
            "listener_filters_timeout": "5s",
            "access_log": [_tunnel_log(place)],
            "filter_chains": [
                {"filter_chain_match": {"transport_protocol": "tls"}, "filters": [check, resolve, connect]}
            ],
        }
    }


def door_clusters(policy: SandboxPolicy) -> dict[str, dict[str, Any]]:
    """Return the cluster that captured TLS takes to the sandbox's own decision."""
    name = f"door/{policy.sandbox}"
    return {name: _internal_cluster(name, name)}


def doors(policy: SandboxPolicy, place: Place) -> dict[str, dict[str, Any]]:
    """Return the listeners of one sandbox: explicit proxy, captured HTTP and TLS, and what TLS leads to."""
    manager = fragments.connection_manager(
        "door",
        request_logs(place),
        fragments.dns_cache(place.resolver),
        rds={"route_config_name": routes.routes_name(policy), "config_source": fragments.ads()},
    )
    http = [fragments.connection_limit(), manager]
    capture = [
        fragments.connection_limit(),
        typed(
            "envoy.filters.network.tcp_proxy",
            f"{_NETWORK}.tcp_proxy.v3.TcpProxy",
            stat_prefix="captured",
            cluster=f"door/{policy.sandbox}",
            idle_timeout="300s",
            tunneling_config={"hostname": "%REQUESTED_SERVER_NAME%:443"},
        ),
    ]
    prefix = f"sandbox/{policy.sandbox}"
    return {
        f"{prefix}/proxy": _door(policy, f"{prefix}/proxy", ("127.0.0.1", PROXY_PORT), http),
        f"{prefix}/http": _door(policy, f"{prefix}/http", ("0.0.0.0", 80), http),  # noqa: S104 (an empty namespace)
        f"{prefix}/tls": {
            **_door(policy, f"{prefix}/tls", ("0.0.0.0", 443), capture),  # noqa: S104 (an empty namespace)
            "listener_filters": [_INSPECT_TLS],
            "listener_filters_timeout": "5s",
        },
        f"door/{policy.sandbox}": {
            "name": f"door/{policy.sandbox}",
            "internal_listener": {},
            "metadata": _generation(policy),
            "filter_chains": [{"name": f"g{policy.generation}", "filters": [manager]}],
        },
    }


def gateway(place: Place, address: tuple[str, int], certificate: dict[str, Any]) -> dict[str, Any]:
    """Return the shared door of many sandboxes: mutual TLS, routes by the identity that Envoy wrote down."""
    manager = fragments.connection_manager(
        "gateway",
        request_logs(place),
        fragments.dns_cache(place.resolver),
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
        scoped_routes={
            "name": "sandboxes",
            "rds_config_source": fragments.ads(),
            "scoped_rds": {"scoped_rds_config_source": fragments.ads()},
            "scope_key_builder": {
                "fragments": [
                    {
                        "header_value_extractor": {
                            "name": "x-forwarded-client-cert",
                            "element_separator": ";",
                            "element": {"separator": "=", "key": "URI"},
                        }
                    }
                ]
            },
        },
    )
    return {
        "name": "gateway",
        "address": {"socket_address": {"address": address[0], "port_value": address[1]}},
        "filter_chains": [{"filters": [manager], "transport_socket": certificate}],
        "per_connection_buffer_limit_bytes": 65536,
    }


def request_logs(place: Place) -> list[dict[str, Any]]:
    """Return the log of requests: one JSON line each, enough to audit a decision."""
    log = _log(
        place,
        kind="request",
        id="%UNIQUE_ID%",
        method="%REQ(:METHOD)%",
        authority="%REQ(:AUTHORITY)%",
        sandbox="%METADATA(LISTENER:kars.egress:sandbox)%",
        peer="%DOWNSTREAM_PEER_URI_SAN%",
        route="%ROUTE_NAME%",
        status="%RESPONSE_CODE%",
        details="%RESPONSE_CODE_DETAILS%",
        flags="%RESPONSE_FLAGS%",
        upstream="%UPSTREAM_REMOTE_ADDRESS%",
        received="%BYTES_RECEIVED%",
        sent="%BYTES_SENT%",
        duration="%DURATION%",
    )
    return [log]


def _tunnel_log(place: Place) -> dict[str, Any]:
    return _log(
        place,
        kind="tunnel",
        id="%UNIQUE_ID%",
        host="%FILTER_STATE(kars.egress.host:PLAIN)%",
        sandbox="%FILTER_STATE(kars.egress.sandbox:PLAIN)%",
        server_name="%REQUESTED_SERVER_NAME%",
        details="%CONNECTION_TERMINATION_DETAILS%",
        flags="%RESPONSE_FLAGS%",
        upstream="%UPSTREAM_REMOTE_ADDRESS%",
        received="%BYTES_RECEIVED%",
        sent="%BYTES_SENT%",
    )


def _log(place: Place, **fields: str) -> dict[str, Any]:
    return typed(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=place.log_file,
        log_format={"json_format": {"time": "%START_TIME(%s.%6f)%", **fields}},
    )


def _door(
    policy: SandboxPolicy, name: str, address: tuple[str, int], filters: list[dict[str, Any]]
) -> dict[str, Any]:
    socket_address = {
        "address": address[0],
        "port_value": address[1],
        "network_namespace_filepath": policy.network_namespace,
    }
    return {
        "name": name,
        "address": {"socket_address": socket_address},
        "metadata": _generation(policy),
        # A new name makes Envoy replace the chain and close what ran on the old one.
        "filter_chains": [{"name": f"g{policy.generation}", "filters": filters}],
        "per_connection_buffer_limit_bytes": 65536,
    }


def _generation(policy: SandboxPolicy) -> dict[str, Any]:
    metadata = {"sandbox": str(policy.sandbox), "generation": policy.generation}
    return {"filter_metadata": {types.METADATA: metadata}}


def _internal_cluster(name: str, listener: str) -> dict[str, Any]:
    endpoint = {"address": {"envoy_internal_address": {"server_listener_name": listener}}}
    raw = typed(
        "envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
    )
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "transport_socket": typed(
            "envoy.transport_sockets.internal_upstream",
            "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
            transport_socket=raw,
        ),
        "circuit_breakers": _breakers(),
    }


def _breakers() -> dict[str, Any]:
    # The doors bound what a sandbox may open; here only the machine is protected.
    bound = 65536
    return {"thresholds": [{"max_connections": bound, "max_pending_requests": bound, "max_requests": bound}]}


def _call(function: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    return {"call_expr": {"function": function, "args": list(arguments)}}


def _field(name: str, field: str) -> dict[str, Any]:
    return {"select_expr": {"operand": {"ident_expr": {"name": name}}, "field": field}}


def _state() -> dict[str, Any]:
    key = {"const_expr": {"string_value": "kars.egress.host"}}
    return _call("_[_]", {"ident_expr": {"name": "filter_state"}}, key)
