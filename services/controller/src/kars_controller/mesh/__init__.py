"""The mesh as the controller sees it: names bound to keys, and who may write to whom."""

from kars_controller.mesh.edges import GraphVerdict, MeshEdge, judge_graph
from kars_controller.mesh.federation import Federation
from kars_controller.mesh.statement_keys import StatementKey, StatementKeys
from kars_controller.mesh.statements import StatementIssuer
from kars_controller.mesh.view import MeshView, PeerView

__all__ = [
    "Federation",
    "GraphVerdict",
    "MeshEdge",
    "MeshView",
    "PeerView",
    "StatementIssuer",
    "StatementKey",
    "StatementKeys",
    "judge_graph",
]
