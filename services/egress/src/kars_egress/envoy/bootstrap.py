"""What an Envoy is started with: who it is, and where its configuration comes from. No listener.

Until this service answers there is nothing to connect to, so an Envoy without a control plane is closed. The
admin interface is a socket file of mode 0600, never a port.
"""

import json
from pathlib import Path
from typing import Any

from kars_egress.xds import types
from kars_egress.xds.types import typed

MAX_CONNECTIONS = 50_000
"""Open connections of all doors; beyond it Envoy refuses new ones."""


def render(*, node: str, directory: Path, control: dict[str, Any], server_name: str, server_id: str) -> str:
    """Return the bootstrap as JSON.

    Args:
        node: a name for logs.
        directory: where `identity.json` and `roots.json` are kept fresh, and the admin socket is made.
        control: address of this service, in Envoy's form.
        server_name: DNS name that this service's certificate has.
        server_id: SPIFFE id that it must have.
    """
    source = {"envoy_grpc": {"cluster_name": types.CONTROL_CLUSTER}}
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return json.dumps(
        {
            "node": {"id": node, "cluster": "kars-egress"},
            "admin": {"address": {"pipe": {"path": str(directory / "admin.sock"), "mode": 0o600}}},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": True,
                    "grpc_services": [source],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "static_resources": {"clusters": [_control(directory, control, server_name, server_id)]},
            "bootstrap_extensions": [
                typed(
                    "envoy.bootstrap.internal_listener",
                    "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                )
            ],
            "overload_manager": {
                "resource_monitors": [
                    typed(
                        "envoy.resource_monitors.global_downstream_max_connections",
                        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        max_active_downstream_connections=MAX_CONNECTIONS,
                    )
                ]
            },
            # Counters of every listener and cluster would cost more memory than the sandbox's routes.
            "stats_config": {
                "stats_matcher": {
                    "inclusion_list": {
                        "patterns": [
                            {"prefix": "server."},
                            {"prefix": "control_plane."},
                            {"prefix": "listener_manager."},
                            {"prefix": "cluster_manager."},
                            {"prefix": "http.door."},
                            {"prefix": "http.gateway."},
                        ]
                    }
                }
            },
        }
    )


def tls_context(directory: Path, **validation: object) -> dict[str, Any]:
    """Return the TLS context of the files that are kept fresh; the other side must prove itself too."""
    return {
        "tls_certificate_sds_secret_configs": [_secret(directory, "identity")],
        "combined_validation_context": {
            "default_validation_context": validation,
            "validation_context_sds_secret_config": _secret(directory, "roots"),
        },
    }


def server_socket(directory: Path) -> dict[str, Any]:
    """Return the transport socket of a door that demands certificates."""
    return typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context=tls_context(directory),
    )


def _secret(directory: Path, name: str) -> dict[str, Any]:
    path = {"path": str(directory / f"{name}.json"), "watched_directory": {"path": str(directory)}}
    return {"name": name, "sds_config": {"path_config_source": path, "resource_api_version": "V3"}}


def _control(directory: Path, address: dict[str, Any], server_name: str, server_id: str) -> dict[str, Any]:
    exact = {"san_type": "URI", "matcher": {"exact": server_id}}
    tls = typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        sni=server_name,
        common_tls_context={
            "alpn_protocols": ["h2"],
            **tls_context(directory, match_typed_subject_alt_names=[exact]),
        },
    )
    keepalive = {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
    options = {
        "@type": f"{types.PREFIX}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": keepalive},
    }
    return {
        "name": types.CONTROL_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "2s",
        "transport_socket": tls,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "load_assignment": {
            "cluster_name": types.CONTROL_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
