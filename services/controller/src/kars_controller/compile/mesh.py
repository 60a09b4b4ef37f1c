"""The mesh compiled: all edges and keys for the relay, and for each sandbox its own part."""

from collections.abc import Iterable

from kars.mesh.v1 import identity_pb2
from kars.mesh.v1 import policy_pb2 as mesh_policy_pb2
from kars.policy.v1 import policy_pb2

from kars_controller.mesh.edges import MeshEdge
from kars_controller.mesh.view import PeerView
from kars_controller.platforms.base import SandboxKey

RELAY_SUBJECT = SandboxKey("svc", "relay")
"""Under which name relays watch their policy; no sandbox can have it: `svc` is refused as a namespace."""


def relay_bundle(
    edges: Iterable[MeshEdge],
    keys: Iterable[identity_pb2.StatementKey],
    federated: Iterable[mesh_policy_pb2.FederatedDomain] = (),
) -> policy_pb2.PolicyBundle:
    """Return what relays enforce. Without edges nothing is bridged."""
    bundle = policy_pb2.PolicyBundle(
        sandbox=policy_pb2.SandboxRef(namespace=RELAY_SUBJECT.namespace, name=RELAY_SUBJECT.name)
    )
    bundle.mesh.default_quota.SetInParent()
    bundle.mesh.edges.extend(_messages(edges))
    bundle.mesh.statement_keys.extend(keys)
    bundle.mesh.federated_domains.extend(federated)
    return bundle


def access(view: PeerView, relay_endpoint: str, trust_threshold: int) -> policy_pb2.MeshAccess:
    """Return one sandbox's part."""
    return policy_pb2.MeshAccess(
        peer=str(view.peer),
        relay_endpoint=relay_endpoint,
        edges=_messages(view.edges),
        trust_threshold=trust_threshold,
    )


def _messages(edges: Iterable[MeshEdge]) -> list[mesh_policy_pb2.MeshEdge]:
    """Return edges in an order that depends on nothing but them: equal edges mean an equal bundle."""
    found = []
    for edge in sorted(
        edges, key=lambda item: (str(item.sender), str(item.recipient), item.score, item.not_after or 0)
    ):
        message = mesh_policy_pb2.MeshEdge(
            sender=str(edge.sender), recipient=str(edge.recipient), score=edge.score
        )
        if edge.not_after is not None:
            message.not_after.seconds = min(edge.not_after, 253_402_300_799)
        found.append(message)
    return found
