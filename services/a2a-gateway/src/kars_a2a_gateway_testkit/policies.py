"""Gateway policies for tests: one agent, opened in one way or another."""

from datetime import UTC, datetime, timedelta
from typing import Any

from kars.a2a.v1 import policy_pb2
from kars.policy.v1 import policy_pb2 as bundle_pb2


def exposure(
    endpoint: str,
    *,
    namespace: str = "team",
    name: str = "writer",
    **fields: Any,  # noqa: ANN401  # proto fields
) -> policy_pb2.AgentExposure:
    """Return an exposure that allows everything; anonymous unless callers are given."""
    fields.setdefault("anonymous", not fields.get("callers"))
    return policy_pb2.AgentExposure(
        agent=policy_pb2.AgentRef(namespace=namespace, name=name),
        endpoint=endpoint,
        enabled=fields.pop("enabled", True),
        allow_streaming=fields.pop("allow_streaming", True),
        allow_push=fields.pop("allow_push", True),
        allow_extended_card=fields.pop("allow_extended_card", True),
        **fields,
    )


def bundle(version: int, policy: policy_pb2.GatewayPolicy) -> bundle_pb2.PolicyBundle:
    """Return a gateway policy as the bundle that it travels in."""
    return bundle_pb2.PolicyBundle(
        sandbox=bundle_pb2.SandboxRef(namespace="kars-system", name="a2a-gateway"),
        version=version,
        a2a_gateway=policy,
    )


def in_hours(hours: float) -> datetime:
    """Return a moment from now."""
    return datetime.now(UTC) + timedelta(hours=hours)
