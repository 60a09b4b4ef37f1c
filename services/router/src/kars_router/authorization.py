"""Who may call which method of a router's gRPC server. A method that is not here is refused."""

from kars_common.rpc import AuthorizationTable

_CONTROLLER = "svc/controller"
_OPERATORS = "operator/*"
_READERS = (_CONTROLLER, _OPERATORS)

TABLE = AuthorizationTable(
    {
        "kars.policy.v1.PolicyEnforcement/GetInForce": _READERS,
        "kars.budget.v1.Budgets/GetUsage": _READERS,
        "kars.inference.v1.Models/ListModels": _READERS,
        "kars.audit.v1.AuditLog/ListRecords": _READERS,
        "kars.audit.v1.AuditLog/TailRecords": _READERS,
        "kars.audit.v1.AuditLog/GetCheckpoint": _READERS,
        "kars.audit.v1.AuditLog/GetInclusionProof": _READERS,
        "kars.audit.v1.AuditLog/GetConsistencyProof": _READERS,
    }
)
