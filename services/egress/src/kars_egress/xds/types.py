"""Type URLs of what Envoy is sent, and names that its configuration and our code share."""

from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

PREFIX = "type.googleapis.com/"

CLUSTER = f"{PREFIX}envoy.config.cluster.v3.Cluster"
LISTENER = f"{PREFIX}envoy.config.listener.v3.Listener"
SCOPE = f"{PREFIX}envoy.config.route.v3.ScopedRouteConfiguration"
ROUTES = f"{PREFIX}envoy.config.route.v3.RouteConfiguration"
EXTENSION = f"{PREFIX}envoy.config.core.v3.TypedExtensionConfig"

ORDER = (CLUSTER, LISTENER, SCOPE, ROUTES, EXTENSION)
"""What must be there before what: clusters before the listeners that name them."""

DIRECT_CLUSTER = "direct"
"""To the internet, by name, with the address filter."""
SECURE_CLUSTER = "secure"
"""The same, with TLS that the proxy speaks itself and verifies."""
TUNNEL_CLUSTER = "tunnel"
"""To the internal listener that compares what TLS asks for with what was allowed."""
CONTROL_CLUSTER = "control"
"""To this service."""

BLOCKLIST_FILTER = "kars.blocklist"
TIME_FILTER = "kars.until"
AUTHZ_FILTER = "kars.ask"
NORMALISE_FILTER = "kars.normalise"
NORMALISE = "normalise"
"""Name of the script that routes ask for."""
HAND_OVER_FILTER = "kars.hand_over"
METADATA = "kars.egress"
"""Key of our metadata on listeners."""

HOST_HEADER = "x-kars-egress-host"
PORT_HEADER = "x-kars-egress-port"


def any_of(name: str, message: Message) -> AnyMessage:
    """Wrap a message of our hand-kept contract under Envoy's name for it."""
    return AnyMessage(type_url=PREFIX + name, value=message.SerializeToString(deterministic=True))


def typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return an extension in the JSON form of Envoy's configuration."""
    return {"name": name, "typed_config": {"@type": PREFIX + kind, **fields}}
