"""Who may call what on the controller: one table a listener. A method that is in neither is refused."""

from kars_common.rpc import ANY_IDENTITY, ANYONE, AuthorizationTable

_OPERATORS = ("operator/*",)
_SANDBOXES = ("ns/*/sandbox/*",)
_AUDITED = ("ns/*/sandbox/*", "svc/*")

BOOTSTRAP = AuthorizationTable({"kars.identity.v1.WorkloadIdentity/Attest": [ANYONE]})
"""The listener without client certificates."""

MAIN = AuthorizationTable(
    {
        "kars.identity.v1.WorkloadIdentity/Renew": ["ns/*/sandbox/*", "svc/*"],
        "kars.identity.v1.WorkloadIdentity/GetTrustBundle": [ANY_IDENTITY],
        "kars.mesh.v1.MeshIdentity/IssueStatement": _SANDBOXES,
        "kars.mesh.v1.MeshIdentity/GetStatementKeys": [ANY_IDENTITY],
        "kars.policy.v1.PolicyDiscovery/Watch": [*_SANDBOXES, "svc/relay"],
        "kars.policy.v1.PolicyDiscovery/GetSigningKeys": [ANY_IDENTITY],
        "kars.governance.v1.Approvals/Attach": _SANDBOXES,
        "kars.governance.v1.Approvals/ListApprovals": _OPERATORS,
        "kars.governance.v1.Approvals/WatchApprovals": _OPERATORS,
        "kars.governance.v1.Approvals/DecideApproval": _OPERATORS,
        "kars.audit.v1.AuditLog/ListRecords": _OPERATORS,
        "kars.audit.v1.AuditLog/TailRecords": _OPERATORS,
        "kars.audit.v1.AuditLog/GetCheckpoint": _OPERATORS,
        "kars.audit.v1.AuditLog/GetInclusionProof": _OPERATORS,
        "kars.audit.v1.AuditLog/GetConsistencyProof": _OPERATORS,
        "kars.audit.v1.AuditWitness/WitnessCheckpoint": _AUDITED,
        "kars.audit.v1.AuditWitness/GetWitnessed": _OPERATORS,
        "kars.sandbox.v1.Sandboxes/GetSandbox": _OPERATORS,
        "kars.sandbox.v1.Sandboxes/StreamLogs": _OPERATORS,
        "kars.sandbox.v1.Sandboxes/Connect": _OPERATORS,
        "kars.sandbox.v1.Sandboxes/GetHostReport": _OPERATORS,
        "kars.resource.v1.Resources/ApplyResource": _OPERATORS,
        "kars.resource.v1.Resources/GetResource": _OPERATORS,
        "kars.resource.v1.Resources/ListResources": _OPERATORS,
        "kars.resource.v1.Resources/WatchResources": _OPERATORS,
        "kars.resource.v1.Resources/DeleteResource": _OPERATORS,
        "kars.resource.v1.Resources/ListEvents": _OPERATORS,
        "kars.resource.v1.Resources/ListKinds": _OPERATORS,
    }
)
"""The mTLS listener."""
