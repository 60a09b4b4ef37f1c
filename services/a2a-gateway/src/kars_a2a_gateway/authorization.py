"""Who inside may call which method of the gateway's admin server."""

from kars_common.rpc import AuthorizationTable

_OPERATORS = ["operator/*", "svc/controller"]

TABLE = AuthorizationTable(
    {
        "kars.policy.v1.PolicyEnforcement/GetInForce": _OPERATORS,
        "kars.audit.v1.AuditLog/ListRecords": _OPERATORS,
        "kars.audit.v1.AuditLog/TailRecords": _OPERATORS,
        "kars.audit.v1.AuditLog/GetCheckpoint": _OPERATORS,
        "kars.audit.v1.AuditLog/GetInclusionProof": _OPERATORS,
        "kars.audit.v1.AuditLog/GetConsistencyProof": _OPERATORS,
    }
)
