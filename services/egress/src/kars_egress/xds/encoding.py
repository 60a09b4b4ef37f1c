"""From Envoy's JSON form to its wire form, checked by envoy-data-plane's types.

Listeners and clusters are written as the JSON that Envoy's documentation shows, and an unknown field is an
error here rather than a refusal there. Costs tens of milliseconds a resource, so only what rarely changes
comes this way (`docs/adr/0030-xds-wire.md`).
"""

from typing import Any

from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.listener.v3 import Listener

# Importing an extension makes its type known to `from_dict`.
from envoy_data_plane.envoy.extensions.access_loggers.file import v3 as _file
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel import v3 as _cel
from envoy_data_plane.envoy.extensions.clusters.dynamic_forward_proxy import v3 as _dfp_cluster
from envoy_data_plane.envoy.extensions.filters.http.dynamic_forward_proxy import v3 as _dfp
from envoy_data_plane.envoy.extensions.filters.http.ext_authz import v3 as _authz
from envoy_data_plane.envoy.extensions.filters.http.lua import v3 as _lua
from envoy_data_plane.envoy.extensions.filters.http.rbac import v3 as _rbac
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as _router
from envoy_data_plane.envoy.extensions.filters.http.set_filter_state import v3 as _state
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector import v3 as _tls_inspector
from envoy_data_plane.envoy.extensions.filters.network.connection_limit import v3 as _limit
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as _hcm
from envoy_data_plane.envoy.extensions.filters.network.rbac import v3 as _network_rbac
from envoy_data_plane.envoy.extensions.filters.network.sni_dynamic_forward_proxy import v3 as _sni
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy import v3 as _tcp
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation import v3 as _early
from envoy_data_plane.envoy.extensions.network.dns_resolver.cares import v3 as _cares
from envoy_data_plane.envoy.extensions.transport_sockets.internal_upstream import v3 as _internal
from envoy_data_plane.envoy.extensions.transport_sockets.raw_buffer import v3 as _raw
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as _tls
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as _upstream
from kars_common.errors import InternalError

EXTENSIONS = (
    *(_file, _cel, _dfp_cluster, _dfp, _authz, _lua, _rbac, _router, _state, _tls_inspector, _limit, _hcm),
    *(_upstream, _early, _network_rbac, _sni, _tcp, _cares, _internal, _raw, _tls),
)
"""What our configuration may use."""


def listener(value: dict[str, Any]) -> bytes:
    """Return a listener's wire form.

    Raises:
        InternalError: `xds_resource_invalid`; the JSON does not fit Envoy's types.
    """
    return _encode(Listener, value)


def cluster(value: dict[str, Any]) -> bytes:
    """Return a cluster's wire form.

    Raises:
        InternalError: as `listener`.
    """
    return _encode(Cluster, value)


def _encode(kind: type[Listener] | type[Cluster], value: dict[str, Any]) -> bytes:
    try:
        return bytes(kind.from_dict(value))
    except (KeyError, ValueError, TypeError) as exc:
        raise InternalError(
            "xds_resource_invalid", f"{value.get('name')} does not fit Envoy's types"
        ) from exc
