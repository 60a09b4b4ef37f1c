"""Who may call which method of the relay: one table a listener. A method that is not here is refused."""

from kars_common.rpc import ANY_IDENTITY, ANYONE, AuthorizationTable

_SANDBOXES = ("ns/*/sandbox/*",)
_OPERATORS = ("operator/*",)
_READERS = ("operator/*", "svc/controller")

MAIN = AuthorizationTable(
    {
        "kars.mesh.v1.Relay/Attach": _SANDBOXES,
        "kars.mesh.v1.RelayStatus/GetStatus": _READERS,
        "kars.mesh.v1.RelayStatus/ListMailboxes": _OPERATORS,
        "kars.mesh.v1.Registry/Register": _SANDBOXES,
        "kars.mesh.v1.Registry/Rotate": _SANDBOXES,
        "kars.mesh.v1.Registry/Deregister": _SANDBOXES,
        "kars.mesh.v1.Registry/Lookup": _SANDBOXES,
        "kars.mesh.v1.Registry/PublishPrekeys": _SANDBOXES,
        "kars.mesh.v1.Registry/TakePrekeys": _SANDBOXES,
        "kars.mesh.v1.Registry/GetPrekeyCounts": _SANDBOXES,
        "kars.mesh.v1.Registry/Discover": _SANDBOXES,
        "kars.mesh.v1.Registry/GetPresence": _SANDBOXES,
        "kars.mesh.v1.Registry/RatePeer": _SANDBOXES,
        "kars.mesh.v1.Registry/GetTreeHead": [ANY_IDENTITY],
        "kars.mesh.v1.Registry/GetInclusionProof": [ANY_IDENTITY],
        "kars.mesh.v1.Registry/GetConsistencyProof": [ANY_IDENTITY],
        "kars.policy.v1.PolicyEnforcement/GetInForce": _READERS,
        "kars.audit.v1.AuditLog/ListRecords": _READERS,
        "kars.audit.v1.AuditLog/TailRecords": _READERS,
        "kars.audit.v1.AuditLog/GetCheckpoint": _READERS,
        "kars.audit.v1.AuditLog/GetInclusionProof": _READERS,
        "kars.audit.v1.AuditLog/GetConsistencyProof": _READERS,
    }
)
"""The mTLS listener for peers, operators and the controller."""

SEALED = AuthorizationTable({"kars.mesh.v1.Relay/SubmitSealed": [ANYONE]})
"""The listener that asks for no client certificate; a delivery token stands in for it."""
